//! See `vmnat_user::fuzzing::netlink_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::netlink_messages(bytes));
