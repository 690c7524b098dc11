//! Files with faults: all are told with their places, and nothing is touched.

use anyhow::{Result, ensure};
use vmnat_tests::lab::{EXTERNAL, Lab, client, guest_address, vmnat::Hook};

use super::{BRIDGE, MAIN, base, diff, forwards, guest_flows, http, listed, write};

on_both_hooks!(
    a_broken_file_leaves_everything_as_it_is,
    one_bad_rule_among_a_thousand_applies_none,
    named_files_and_standard_input_are_read_too,
);

fn a_broken_file_leaves_everything_as_it_is(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    lab.vmnat_ok(&["apply"])?;
    write(
        MAIN,
        &format!("{}guest-flow = 5\n{}[bridge.virbr0]\nfiltering = 5\n", base(hook), forwards(8081..8082)),
    )?;
    write("/etc/vmnat/conf.d/a.toml", "uplink = \"enp3s0\"\n")?;
    for command in [&["apply"][..], &["apply", "--dry-run"], &["up"], &["diff"], &["config", "check"]] {
        lab.refused_with(2, command)?;
        let error = lab.vmnat_refused(command)?;
        for words in [
            "3 faults",
            "/etc/vmnat/vmnat.toml:3:1\n",
            "did you mean \"guest-flows\"?",
            "/etc/vmnat/vmnat.toml:8:13\n",
            "filtering: 5 is a number, and text in quotes is needed",
            "/etc/vmnat/conf.d/a.toml:1:10\n",
            "/etc/vmnat/vmnat.toml:1:10\n",
        ] {
            ensure!(error.contains(words), "no {words:?} in {error}");
        }
    }
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    ensure!(listed(&lab)?.len() == 1, "something has changed");
    lab.vmnat_ok(&["down"])?;
    lab.refused_with(2, &["up"])?;
    lab.refused_with(9, &["status"])?;
    lab.assert_invariants()
}

/// The thousandth forward wants a port of the host's server; and one leads to no guest.
fn one_bad_rule_among_a_thousand_applies_none(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    lab.vmnat_ok(&["apply"])?;
    let bad = format!(
        "[[forward]]\nspec = \"7000:{0}:80\"\n[[forward]]\nspec = \"7999:10.99.0.1:80\"\n",
        guest_address(1)
    );
    let good: Vec<String> =
        (9_000..9_999).map(|port| format!("[[forward]]\nspec = \"{}\"\n", http(port))).collect();
    write(MAIN, &format!("{}guest-flows = 9\n{BRIDGE}{}{bad}", base(hook), good.concat()))?;
    lab.refused_with(10, &["apply"])?;
    let error = lab.vmnat_refused(&["apply"])?;
    for words in [
        "2 faults",
        "vmnat.toml:2004:8",
        "port 7000/tcp is already taken by",
        "vmnat.toml:2006:8",
        "10.99.0.1",
    ] {
        ensure!(error.contains(words), "no {words:?} in {error}");
    }
    ensure!(listed(&lab)? == [(http(8080), "file".to_owned())], "some were applied");
    ensure!(guest_flows(&lab)? == 16_384, "an option was applied");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    client::must_fail("a good one", client::get(&lab.world, &format!("{EXTERNAL}:9000"), "/"))?;
    lab.assert_invariants()
}

fn named_files_and_standard_input_are_read_too(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let text = |ports| format!("{}{}{BRIDGE}", base(hook), forwards(ports));
    write("/run/own.toml", &text(8080..8081))?;
    ensure!(lab.vmnat_ok(&["config", "check", "/run/own.toml"])?.contains("port forwards: 1"), "check");
    lab.vmnat_ok(&["apply", "-f", "/run/own.toml"])?;
    let program = vmnat_tests::lab::vmnat::program()?;
    let program = program.to_string_lossy();
    lab.host.exec_with(&[&program, "apply", "-f", "-"], &text(8080..8082))?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    // What runs, as a file: it says the same again.
    let shown = lab.vmnat_ok(&["config", "show"])?;
    write(MAIN, &shown)?;
    ensure!(diff(&lab, 0)?.is_empty(), "{shown}");
    lab.assert_invariants()
}
