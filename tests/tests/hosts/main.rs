//! The six situations in which hosts cut their guests off, with the real software, first without vmnat and then with it.

/// Makes each variant a test of its name.
macro_rules! play {
    ($($variant:ident),+ $(,)?) => {
        $(#[test] fn $variant() -> anyhow::Result<()> { super::$variant().play() })+
    };
}

mod docker;
