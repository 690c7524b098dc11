//! Many port forwards in one call: all of them, or none; and calls that only ask.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{EXTERNAL, Lab, client, guest_address, vmnat::Hook};

on_both_hooks!(
    a_file_is_added_as_a_whole,
    a_bad_line_is_named_and_nothing_changes,
    a_line_in_conflict_is_named_and_nothing_changes,
    more_than_the_kernel_holds_is_refused_as_a_whole,
    standard_input_is_a_file_too,
    a_dry_run_changes_nothing,
    adding_twice_changes_nothing,
    existence_is_an_exit_code,
);

const LIST: &str = "/run/forwards.txt";

fn http(port: u16) -> String {
    format!("{port}:{}:80/tcp", guest_address(1))
}

fn a_file_is_added_as_a_whole(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut list = String::from("# web servers\n\n");
    for port in 20_000..20_300 {
        writeln!(list, "{}", http(port))?;
    }
    writeln!(list, "8080:{}:80 --comment 'the first' --from 0.0.0.0/0  # options", guest_address(1))?;
    fs::write(LIST, list)?;
    let printed = lab.vmnat_ok(&["dnat", "add", "--file", LIST])?;
    ensure!(
        printed.lines().filter(|line| line.starts_with("added: port forward")).count() == 301,
        "{printed}"
    );
    for port in [20_000, 20_299, 8080] {
        client::get(&lab.world, &format!("{EXTERNAL}:{port}"), "/")?;
    }
    ensure!(lab.listing(&["dnat", "list"])?.at(300)["comment"] == "the first", "options are lost");
    lab.assert_invariants()
}

/// Neither what stands before the line nor what stands after it is added; what was there goes on.
fn refused_as_a_whole(hook: Hook, line: &str, code: i32, words: &[&str]) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    fs::write(LIST, format!("{}\n# the next line is bad\n{line}\n{}\n", http(8081), http(8082)))?;
    lab.refused_with(code, &["dnat", "add", "--file", LIST])?;
    let error = lab.vmnat_refused(&["dnat", "add", "--file", LIST])?;
    for word in words.iter().chain(&["/run/forwards.txt, line 3: "]) {
        ensure!(error.contains(word), "no {word:?} in {error}");
    }
    ensure!(lab.rows(&["dnat", "list"])?.len() == 1, "something was added");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    client::must_fail("a line before", client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/"))?;
    lab.assert_invariants()
}

fn a_bad_line_is_named_and_nothing_changes(hook: Hook) -> Result<()> {
    refused_as_a_whole(hook, "8000-8009:192.168.122.10:80", 2, &["8000-8009 is 10 ports and 80 is 1 port"])
}

fn a_line_in_conflict_is_named_and_nothing_changes(hook: Hook) -> Result<()> {
    let mut words = vec!["port 8081/tcp is already taken by /run/forwards.txt, line 1"];
    refused_as_a_whole(hook, "8081:192.168.122.11:80", 10, &words)?;
    words = vec!["port 8080/tcp is already taken by port forward 1"];
    refused_as_a_whole(hook, "8080:192.168.122.11:80", 10, &words)?;
    refused_as_a_whole(hook, "8090:192.168.122.1:80", 1, &["192.168.122.1 cannot be the target"])
}

/// Each forward takes two entries, at the uplink and at 127.0.0.1: 16,400 are too many, and the old set stands.
fn more_than_the_kernel_holds_is_refused_as_a_whole(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    let file = fs::read("/var/lib/vmnat/default/forwards.json")?;
    let lines: Vec<String> = (10_000..26_400).map(http).collect();
    fs::write(LIST, lines.join("\n"))?;
    let error = lab.vmnat_refused(&["dnat", "add", "--file", LIST])?;
    ensure!(
        error.contains("32802 entries of port forwards do not fit") && error.contains("32768"),
        "{error}"
    );
    ensure!(fs::read("/var/lib/vmnat/default/forwards.json")? == file, "the file has changed");
    ensure!(fs::read_dir("/var/lib/vmnat/default")?.count() == 2, "a temporary file is left");
    ensure!(lab.rows(&["dnat", "list"])?.len() == 1, "some are listed");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    lab.assert_invariants()
}

fn standard_input_is_a_file_too(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let program = vmnat_tests::lab::vmnat::program()?;
    let program = program.to_string_lossy();
    lab.host.exec_with(&[&program, "dnat", "add", "--file", "-"], &format!("{}\n", http(8080)))?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    lab.assert_invariants()
}

/// Neither kernel nor files change; what would be refused is refused.
fn a_dry_run_changes_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let printed = lab.vmnat_ok(&["dnat", "add", "--dry-run", &http(8080)])?;
    ensure!(printed == format!("would add port forward {}\n", http(8080)), "{printed}");
    ensure!(!Path::new("/var/lib/vmnat/default/forwards.json").exists(), "a file was made");
    ensure!(lab.rows(&["dnat", "list"])?.is_empty(), "it is listed");
    client::must_fail("a dry run", client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"))?;
    lab.refused_with(10, &["dnat", "add", "--dry-run", "7000:192.168.122.10:80"])?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    let printed = lab.vmnat_ok(&["dnat", "rm", "1", "--dry-run"])?;
    ensure!(printed == format!("would remove port forward 1 ({})\n", http(8080)), "{printed}");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let rows = lab.listing(&["dnat", "rm", "1"])?;
    ensure!(rows.at(0)["change"] == "removed" && rows.at(0)["id"] == 1, "{rows:?}");
    lab.assert_invariants()
}

fn adding_twice_changes_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let rows = lab.listing(&["dnat", "add", &http(8080)])?;
    ensure!(rows.at(0)["change"] == "added" && rows.at(0)["id"] == 1, "{rows:?}");
    let file = fs::metadata("/var/lib/vmnat/default/forwards.json")?;
    let printed = lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    ensure!(printed == format!("unchanged: port forward 1 is {}\n", http(8080)), "{printed}");
    let again = fs::metadata("/var/lib/vmnat/default/forwards.json")?;
    ensure!(file.modified()? == again.modified()?, "the file was written again");
    ensure!(
        lab.listing(&["dnat", "add", &http(8080)])?.at(0)["change"] == "unchanged",
        "JSON says otherwise"
    );
    // The same port with another option is another forward, which the first one is in the way of.
    lab.refused_with(10, &["dnat", "add", &http(8080), "--from", "192.0.2.0/24"])?;
    lab.assert_invariants()
}

fn existence_is_an_exit_code(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    ensure!(
        lab.vmnat_ok(&["dnat", "exists", "1"])? == format!("port forward 1 is {}\n", http(8080)),
        "by number"
    );
    ensure!(lab.vmnat_ok(&["dnat", "exists", "-q", &http(8080)])?.is_empty(), "not quiet");
    lab.refused_with(1, &["dnat", "exists", "2"])?;
    let quiet = lab.vmnat(&["dnat", "exists", "-q", &http(8081)])?;
    ensure!(
        quiet.status.code() == Some(1) && quiet.stderr.is_empty() && quiet.stdout.is_empty(),
        "{quiet:?}"
    );
    ensure!(lab.rows(&["dnat", "exists", "1"])?.len() == 1, "no JSON");
    lab.assert_invariants()
}
