//! See `vmnat_user::fuzzing::tc_filters`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::tc_filters(bytes));
