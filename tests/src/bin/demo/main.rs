//! What vmnat does, for a person to watch.

fn main() {}
