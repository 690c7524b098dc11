//! More than the maps hold: refused as a whole with the numbers, before anything is changed. What guests fill is no reason to
//! refuse.

use std::fs;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{EXTERNAL, Lab, SERVER_ECHO, client, vmnat::Hook};

use super::{
    super::{BRIDGE, MAIN, STATE, base, forwards, listed, write},
    warnings,
};

#[test]
fn more_than_fits_is_refused_as_a_whole() -> Result<()> {
    let mut lab = Lab::new()?;
    let base = base(Hook::of_the_kernel());
    write(MAIN, &format!("{base}{}{BRIDGE}", forwards(8080..8081)))?;
    lab.vmnat_ok(&["apply"])?;
    let before = fs::read(STATE)?;
    let quoted = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    let networks = (0..300).map(|number| format!("\"10.{}.{}.0/28\"", 20 + number / 250, number % 250));
    let plain = (0..1_100).map(|number| format!("\"10.{}.{}.0/24\"", 30 + number / 250, number % 250));
    for (what, text) in [
        ("300 networks do not fit", format!("{base}{BRIDGE}network = {}\n", quoted(networks.collect()))),
        (
            "1100 networks without translation",
            format!("{base}no-nat = {}\n{BRIDGE}", quoted(plain.collect())),
        ),
        ("entries of port forwards do not fit", format!("{base}{}{BRIDGE}", forwards(10_000..27_000))),
    ] {
        write(MAIN, &text)?;
        lab.refused_with(1, &["apply"])?;
        let error = lab.vmnat_refused(&["apply"])?;
        ensure!(error.contains(what) && error.contains("nothing was changed"), "{what}: {error}");
        ensure!(listed(&lab)?.len() == 1 && fs::read(STATE)? == before, "{what}: something has changed");
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    }
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// More MACs than are remembered, as a guest can make them up: commands go on, `status` tells it, and it passes.
#[test]
fn a_full_table_of_stations_stops_no_command() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    let every = |verb: &str| -> String {
        let line = |number: u32| {
            let mac = format!("02:77:00:00:{:02x}:{:02x}", number >> 8, number & 255);
            format!("fdb {verb} {mac} dev vnet1 master static\n")
        };
        (0..16_500).map(line).collect()
    };
    lab.host.exec_with(&["bridge", "-batch", "-"], &every("add"))?;
    lab.vmnat_ok(&["dnat", "add", &super::http(8080)])?;
    let told = warnings(&lab)?;
    ensure!(told.iter().any(|warning| warning.to_string().contains("stations")), "{told:?}");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    lab.host.exec_with(&["bridge", "-batch", "-"], &every("del"))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    lab.assert_invariants()
}
