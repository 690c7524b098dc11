//! The `vmnat` command.

fn main() {}
