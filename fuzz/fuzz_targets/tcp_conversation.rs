//! See `vmnat_common::fuzzing::tcp_conversation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_common::fuzzing::tcp_conversation(bytes));
