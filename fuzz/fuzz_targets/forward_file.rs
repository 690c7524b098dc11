//! See `vmnat_user::fuzzing::forward_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::forward_file(bytes));
