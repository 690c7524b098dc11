//! See `vmnat_user::fuzzing::config_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::config_file(bytes));
