//! See `vmnat_user::fuzzing::instance_name`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::instance_name(bytes));
