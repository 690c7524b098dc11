//! See `vmnat_user::fuzzing::forward_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::forward_spec(bytes));
