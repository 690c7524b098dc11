//! See `vmnat_user::fuzzing::socket_table`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::socket_table(bytes));
