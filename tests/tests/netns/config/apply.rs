//! `apply` from nothing, changed, twice, undone; `diff` and `--dry-run` beside it; `up` that does what files say.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_ECHO, client, guest_address, snapshot::Snapshot, vmnat::Hook, wait_until,
};

use super::{BRIDGE, MAIN, STATE, base, diff, forwards, guest_flows, http, listed, write};

on_both_hooks!(
    an_instance_comes_from_nothing_and_follows_its_files,
    up_without_options_does_what_files_say,
    a_dry_run_of_an_apply_changes_nothing,
    the_command_line_and_files_live_side_by_side,
    a_bridge_may_come_after_its_file,
);

/// 1. `apply` starts; 2. twice is once; 3. a changed file changes that alone; 4. `down` and `apply` are consistent; 5. a file
///    that says nothing takes everything back.
fn an_instance_comes_from_nothing_and_follows_its_files(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let refused = lab.vmnat_refused(&["apply"])?;
    ensure!(refused.contains("no configuration in /etc/vmnat"), "{refused}");
    let before = Snapshot::take(&lab.host)?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8082)))?;
    ensure!(diff(&lab, 1)?.contains("+ bridge virbr0\n"), "diff of what does not run");
    let printed = lab.vmnat_ok(&["apply"])?;
    for line in ["+ bridge virbr0", "+ uplink enp3s0", &format!("+ forward {}", http(8080))] {
        ensure!(printed.lines().any(|found| found == line), "no {line:?} in {printed}");
    }
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    ensure!(diff(&lab, 0)?.is_empty(), "diff after apply");
    let state = fs::read(STATE)?;
    let stamp = fs::metadata(STATE)?.modified()?;
    let again = lab.vmnat_ok(&["apply"])?;
    ensure!(again == "instance \"default\" is what /etc/vmnat says: nothing to change\n", "{again}");
    ensure!(
        fs::read(STATE)? == state && fs::metadata(STATE)?.modified()? == stamp,
        "the state was written again"
    );
    write(MAIN, &format!("{}guest-flows = 4096\n{}{BRIDGE}", base(hook), forwards(8081..8083)))?;
    let expected =
        format!("~ guest-flows: 16384 -> 4096\n- forward {}\n+ forward {}\n", http(8080), http(8082));
    ensure!(diff(&lab, 1)? == expected, "{}", diff(&lab, 1)?);
    ensure!(lab.vmnat_ok(&["apply"])?.starts_with(&expected), "apply tells other lines than diff");
    client::get(&lab.world, &format!("{EXTERNAL}:8082"), "/")?;
    client::must_fail(
        "what the file says no more",
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"),
    )?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.vmnat_ok(&["apply"])?;
    ensure!(diff(&lab, 0)?.is_empty() && listed(&lab)?.len() == 2, "after down and apply");
    write(MAIN, "")?;
    lab.vmnat_ok(&["apply"])?;
    ensure!(listed(&lab)?.is_empty() && lab.rows(&["network", "list"])?.is_empty(), "something is left");
    lab.assert_invariants()
}

/// Also when it runs already; `conf.d` joins by name.
fn up_without_options_does_what_files_say(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.refused_with(2, &["up"])?;
    write(MAIN, &base(hook))?;
    write("/etc/vmnat/conf.d/10-guests.toml", "[bridge.virbr0]\nfiltering = \"endpoint-independent\"\n")?;
    write("/etc/vmnat/conf.d/20-web.toml", &forwards(8080..8081))?;
    write("/etc/vmnat/conf.d/30-off.toml.bak", "this is no TOML")?;
    lab.vmnat_ok(&["up"])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    ensure!(lab.listing(&["network", "list"])?.at(0)["filtering"] == "endpoint-independent", "filtering");
    ensure!(
        lab.listing(&["dnat", "list"])?.at(0)["file"] == "/etc/vmnat/conf.d/20-web.toml",
        "the file's name"
    );
    fs::remove_file("/etc/vmnat/conf.d/20-web.toml")?;
    ensure!(lab.vmnat_ok(&["up"])?.contains(&format!("- forward {}", http(8080))), "up while it runs");
    ensure!(lab.vmnat_ok(&["up"])?.contains("nothing to change"), "up twice");
    lab.vmnat_ok(&["down"])?;
    // With options, what files say is part of the start all the same.
    lab.vmnat_ok(&["up", "--guest-rate", "77"])?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(diff(&lab, 0)?.is_empty(), "an option beside the files");
    lab.assert_invariants()
}

/// Neither what runs nor a file, whether it runs or not; what would be refused is refused.
fn a_dry_run_of_an_apply_changes_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    write(MAIN, &format!("{}{BRIDGE}", base(hook)))?;
    lab.vmnat_ok(&["apply", "--dry-run"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.refused_with(9, &["status"])?;
    lab.vmnat_ok(&["apply"])?;
    let state = fs::read(STATE)?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    let printed = lab.vmnat_ok(&["apply", "--dry-run"])?;
    ensure!(printed == format!("+ forward {}\n", http(8080)), "{printed}");
    let rows = lab.listing(&["apply", "--dry-run"])?;
    ensure!(
        rows.at(0)["change"] == "add" && rows.at(0)["what"] == format!("forward {}", http(8080)),
        "{rows:?}"
    );
    ensure!(fs::read(STATE)? == state && listed(&lab)?.is_empty(), "something has changed");
    write(MAIN, &format!("{}forward = [\"7000:{}:80\"]\n{BRIDGE}", base(hook), guest_address(1)))?;
    // The host's own echo server has that port.
    lab.refused_with(10, &["apply", "--dry-run"])?;
    ensure!(diff(&lab, 2)?.is_empty(), "diff prints what cannot be");
    lab.assert_invariants()
}

/// 1. each owns what it said; 2. neither takes the other's away; 3. a clash is one error with both sides.
fn the_command_line_and_files_live_side_by_side(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    write(MAIN, &format!("guest-flows = 4096\n{}{BRIDGE}", forwards(8081..8082)))?;
    lab.vmnat_ok(&["apply"])?;
    let both = [(http(8080), "command".to_owned()), (http(8081), "file".to_owned())];
    ensure!(listed(&lab)? == both, "{:?}", listed(&lab)?);
    let table = lab.vmnat_ok(&["dnat", "list"])?;
    ensure!(table.contains("ORIGIN") && table.contains("command line") && table.contains(MAIN), "{table}");
    for (command, what) in
        [(&["dnat", "rm", "2"][..], "port forward 2"), (&["up", "--guest-flows", "9"], "guest-flows")]
    {
        lab.refused_with(10, command)?;
        let error = lab.vmnat_refused(command)?;
        ensure!(error.contains(what) && error.contains("/etc/vmnat"), "{error}");
    }
    ensure!(guest_flows(&lab)? == 4096, "a refused option has come true");
    lab.refused_with(10, &["dnat", "add", &format!("8081:{}:80", guest_address(2))])?;
    write(MAIN, &format!("pool = \"2000-3000\"\nforward = [\"8080:{}:80\"]\n", guest_address(2)))?;
    let error = lab.vmnat_refused(&["apply"])?;
    for words in
        ["/etc/vmnat/vmnat.toml:2:12", "port 8080/tcp is already taken by port forward 1", "dnat rm 1"]
    {
        ensure!(error.contains(words), "no {words:?} in {error}");
    }
    ensure!(listed(&lab)? == both, "a clash has changed something");
    write(MAIN, "guest-flows = 4096\n")?;
    lab.vmnat_ok(&["apply"])?;
    ensure!(
        listed(&lab)? == both.get(..1).unwrap_or_default(),
        "apply took what is the command line's, or left what is not"
    );
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.vmnat_ok(&["down"])?;
    fs::remove_file(MAIN)?;
    lab.up(hook)?;
    ensure!(listed(&lab)? == both.get(..1).unwrap_or_default(), "what outlives `down` is the command line's");
    lab.assert_invariants()
}

/// Files are read at boot, in any order with what makes bridges: the agent waits on.
fn a_bridge_may_come_after_its_file(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let text = format!(
        "{}forward = [\"8080:192.168.55.9:80\", \"8081:web:80\"]\n{BRIDGE}[bridge.late0]\n",
        base(hook)
    );
    write(MAIN, &text)?;
    let printed = lab.vmnat_ok(&["up"])?;
    ensure!(printed.contains("late0") && printed.contains("no lease of \"web\""), "no warning in {printed}");
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.host.ip("link add late0 type bridge\naddress add 192.168.55.1/24 dev late0\nlink set late0 up\n")?;
    wait_until("the agent serves late0", Duration::from_secs(10), || {
        Ok(lab.vmnat_ok(&["apply"])?.contains("nothing to change"))
    })?;
    let rows = lab.rows(&["network", "list"])?;
    ensure!(rows.iter().any(|row| row["network"] == "192.168.55.0/24"), "{rows:?}");
    write(MAIN, &format!("{}[bridge.vnet1]\n", base(hook)))?;
    lab.refused_with(4, &["apply"])?;
    lab.assert_invariants()
}
