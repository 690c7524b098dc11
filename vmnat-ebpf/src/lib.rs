//! Empty: cargo wants a library to depend on, so that a change of the kernel half rebuilds the user half.
#![no_std]
