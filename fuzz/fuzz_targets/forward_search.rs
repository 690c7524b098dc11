//! See `vmnat_common::fuzzing::forward_search`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_common::fuzzing::forward_search(bytes));
