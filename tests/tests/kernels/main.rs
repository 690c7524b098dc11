//! The core of the netns tier on other kernels than this machine's: Debian's 6.1, where clsact must serve, and 6.12, each in
//! a machine with systemd as process 1.

mod full;
mod reports;
mod short;
