//! See `vmnat_common::fuzzing::token_bucket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_common::fuzzing::token_bucket(bytes));
