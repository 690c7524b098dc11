//! See `vmnat_common::fuzzing::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_common::fuzzing::wire(bytes));
