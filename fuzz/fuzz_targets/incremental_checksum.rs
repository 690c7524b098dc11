//! See `vmnat_common::fuzzing::incremental_checksum`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_common::fuzzing::incremental_checksum(bytes));
