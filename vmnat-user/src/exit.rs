//! The exit codes of `vmnat`, one for each kind of trouble that a script may want to tell apart.

/// How a command ended.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line, or a file of the configuration, was not understood.
    Usage = 2,
    /// Not root, or a capability is missing.
    NotPermitted = 3,
    /// No such interface, or not of the kind that is needed.
    NoInterface = 4,
    /// The uplink has no IPv4 address, or not the one that was asked for.
    NoUplinkAddress = 5,
    /// The kernel is too old or lacks a feature.
    KernelTooOld = 6,
    /// The BPF file system is not mounted.
    NoBpfFs = 7,
    /// Two networks overlap.
    Overlap = 8,
    /// The instance does not run.
    NotRunning = 9,
    /// Already taken, or in conflict with something that exists.
    Conflict = 10,
    /// Pinned maps are of a layout that this version does not know.
    UnknownLayout = 11,
    /// Done in part: some steps failed.
    Partial = 12,
    /// The instance runs, and its agent or a hook is missing.
    Degraded = 13,
    /// `doctor` has found that guests lack something.
    Offline = 14,
}

impl Exit {
    /// Every code.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotPermitted,
        Self::NoInterface,
        Self::NoUplinkAddress,
        Self::KernelTooOld,
        Self::NoBpfFs,
        Self::Overlap,
        Self::NotRunning,
        Self::Conflict,
        Self::UnknownLayout,
        Self::Partial,
        Self::Degraded,
        Self::Offline,
    ];

    /// The number that the process returns.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for `--help`.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "failed; `diff`: something differs",
            Self::Usage => "the command line or a configuration was not understood; `diff`: any trouble",
            Self::NotPermitted => "not root, or a capability is missing",
            Self::NoInterface => "no such interface, or not of the kind that is needed",
            Self::NoUplinkAddress => "the uplink has no IPv4 address, or not the one that was asked for",
            Self::KernelTooOld => "the kernel is too old or lacks a feature",
            Self::NoBpfFs => "the BPF file system is not mounted",
            Self::Overlap => "two networks overlap",
            Self::NotRunning => "this instance is not running",
            Self::Conflict => "already taken, or in conflict with what exists",
            Self::UnknownLayout => "pinned maps have a layout that this version does not know",
            Self::Partial => "done in part; each step that failed is named",
            Self::Degraded => {
                "`status`: the agent is dead or stopped, or a hook is missing; `up` puts that right"
            }
            Self::Offline => "`doctor`: guests are offline, or lack DHCP, names or each other",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_place_in_the_list() {
        for (place, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), place);
        }
    }

    #[test]
    fn the_readme_has_the_same_table() {
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("### Exit codes\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        let wanted: Vec<String> =
            Exit::ALL.iter().map(|exit| format!("| {} | {} |", exit.code(), exit.meaning())).collect();
        assert_eq!(rows, wanted);
    }
}
