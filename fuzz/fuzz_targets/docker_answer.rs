//! See `vmnat_user::fuzzing::docker_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::docker_answer(bytes));
