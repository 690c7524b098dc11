//! See `vmnat_user::fuzzing::doctor_rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::doctor_rules(bytes));
