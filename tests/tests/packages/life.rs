//! A package's life on a host: installed, used, upgraded, rebooted, removed, purged; and the unit's in between.

use anyhow::{Result, ensure};
use vmnat_tests::packages::{Machine, made::LATER};

use crate::host::Host;

/// What a reboot finds running, if the host has it.
const NEIGHBOURS: &str = "systemctl unmask containerd.service docker.service docker.socket libvirtd.service libvirtd.socket \
     libvirtd-ro.socket libvirtd-admin.socket";

#[test]
fn the_package_lives_on_linux_6_1() -> Result<()> {
    must_be_good("bookworm", "6.1.", "clsact", "Before")
}

/// 1. Installed, the unit is enabled, skipped and sound. 2. `up` and `dnat` bring a guest online, and leave the agent to the
///    unit, from where it gives addresses and relays names. 3. Reload, restart, kill, a hanging agent and a stop are not noticed
///    by traffic, nor are jumps of the clock, which end no port forward early. 4. Neither is an upgrade with another kernel half. 5. After a reboot beside libvirt and Docker all is back.
///    6. libvirt's hooks notify. 7. Removed, the host is as it was, and a new installation brings all back. 8. Purged, nothing is
///    left.
///
/// `order` is how the unit stands to libvirt and Docker at that boot.
pub fn must_be_good(suite: &str, kernel: &str, hook: &str, order: &str) -> Result<()> {
    let mut host = Host::boot(suite)?;
    let release = host.machine.run("uname -r")?;
    ensure!(release.starts_with(kernel), "{suite} runs Linux {release}");
    host.must_be_cut_off()?;

    let before = files(&mut host.machine)?;
    host.machine.run("dpkg -i /stage/vmnat.deb")?;
    the_unit_is_sound(&mut host.machine)?;
    host.must_be_cut_off()?;

    up(&mut host, hook)?;
    work_on_the_unit(&mut host)?;
    the_clock_jumps(&mut host)?;
    upgrade(&mut host)?;
    reboot(&mut host, order)?;
    the_hooks_notify(&mut host.machine)?;
    remove(&mut host)?;
    purge(&mut host, &before)
}

/// Every file of the host that may be vmnat's.
fn files(machine: &mut Machine) -> Result<String> {
    machine.run("find / -xdev -path /proc -prune -o -path /stage -prune -o -name '*vmnat*' -print; ls -A /sys/fs/bpf /run/vmnat 2>&1; cat /proc/sys/net/ipv4/conf/*/forwarding; ip -br link | grep -c vmnat || true")
}

fn the_unit_is_sound(machine: &mut Machine) -> Result<()> {
    let enabled = machine.run("systemctl is-enabled vmnat.service")?;
    ensure!(enabled.trim() == "enabled", "{enabled}");
    // Skipped, not failed: there is nothing to bring back.
    let active =
        machine.try_run("systemctl is-active vmnat.service; systemctl --failed --plain --no-legend")?;
    ensure!(active.text.trim() == "inactive", "{}", active.text);
    let units = "/usr/lib/systemd/system/vmnat.service /usr/lib/systemd/system/vmnat@.service";
    // The trees have neither man nor its pages.
    let said = machine.run(&format!("systemd-analyze verify --man=no {units} 2>&1"))?;
    ensure!(said.trim().is_empty(), "{said}");
    for unit in ["vmnat.service", "vmnat@lab.service"] {
        let verdict = machine.run(&format!("systemd-analyze security --no-pager {unit} | tail -n 1"))?;
        ensure!(verdict.contains(" OK "), "{verdict}");
        println!("{verdict}");
    }
    Ok(())
}

fn up(host: &mut Host, hook: &str) -> Result<()> {
    let said = host.machine.run("vmnat up --bridge virbr0 --uplink enp3s0 --dns 203.0.113.1")?;
    ensure!(said.contains("started vmnat.service"), "{said}");
    host.machine.run("vmnat dnat add 7007:192.168.122.10:7/tcp+udp")?;
    host.must_be_online()?;
    is_well(&mut host.machine)?;
    let status = host.machine.run("vmnat status")?;
    ensure!(status.lines().any(|line| line.starts_with("attached by") && line.ends_with(hook)), "{status}");
    ensure!(!status.contains("warning:"), "{status}");
    let text = "systemctl show vmnat -p StatusText --value";
    let wanted = "virbr0 by enp3s0; port forwards: 1";
    host.machine.wait_for(20, &format!("{text} && {text} | grep -qx '{wanted}'"))?;
    Ok(())
}

/// The unit runs, its process is the agent, and vmnat is whole.
fn is_well(machine: &mut Machine) -> Result<()> {
    machine.wait_for(60, "systemctl is-active vmnat.service && vmnat status")?;
    let pids = machine.run("systemctl show vmnat -p MainPID --value; cat /run/vmnat/default/agent.pid")?;
    let pids: Vec<&str> = pids.split_whitespace().collect();
    ensure!(matches!(pids[..], [unit, agent] if unit == agent), "{pids:?}");
    Ok(())
}

fn work_on_the_unit(host: &mut Host) -> Result<()> {
    host.under_traffic("reload", |machine| {
        machine.run("systemctl reload vmnat && sleep 1")?;
        is_well(machine)
    })?;
    let kept = "cut -d' ' -f2- /var/lib/vmnat/default/dhcp.leases";
    let (address, leases) = (host.must_be_served()?, host.machine.run(kept)?);
    ensure!(leases.contains(&address), "{address} is not kept: {leases}");
    host.under_traffic("restart", |machine| {
        machine.run("systemctl restart vmnat")?;
        is_well(machine)
    })?;
    ensure!(host.machine.run(kept)? == leases, "a restart has changed the leases");
    let again = host.must_be_served()?;
    ensure!(again == address, "{address} has become {again}");
    host.under_traffic("kill -9", |machine| {
        machine.run("systemctl kill --signal KILL vmnat")?;
        machine.wait_for(60, "[ $(systemctl show vmnat -p NRestarts --value) -ge 1 ]")?;
        is_well(machine)
    })?;
    host.under_traffic("an agent that hangs", |machine| {
        machine.run(
            "mkdir -p /run/systemd/system/vmnat.service.d; printf '[Service]\\nWatchdogSec=8\\nTimeoutAbortSec=1\\n' \
             >/run/systemd/system/vmnat.service.d/test.conf; systemctl daemon-reload; systemctl restart vmnat",
        )?;
        // The beat comes from the loop, so a short watchdog leaves an agent alone that works.
        machine.run("sleep 18; [ $(systemctl show vmnat -p NRestarts --value) = 0 ]")?;
        machine.run("kill -STOP $(systemctl show vmnat -p MainPID --value)")?;
        machine.wait_for(90, "[ $(systemctl show vmnat -p NRestarts --value) -ge 1 ]")?;
        machine.run("journalctl -u vmnat | grep -i 'watchdog timeout'")?;
        machine.run("rm -r /run/systemd/system/vmnat.service.d; systemctl daemon-reload; systemctl restart vmnat")?;
        is_well(machine)
    })?;
    host.under_traffic("stop and start", |machine| {
        machine.run("systemctl stop vmnat")?;
        let status = machine.try_run("vmnat status >/dev/null")?;
        ensure!(status.code == 13 && status.text.contains("agent is dead"), "{}", status.text);
        machine.run("mountpoint -q /run/vmnat/default/room || grep -q vmnat/default/room /proc/mounts")?;
        machine.run("systemctl start vmnat")?;
        is_well(machine)
    })?;
    // The journal has fields, not text alone.
    let fields = machine_log(&mut host.machine)?;
    ensure!(
        fields.contains("\"CODE_FILE\"") && fields.contains("\"SYSLOG_IDENTIFIER\":\"vmnat-default\""),
        "{fields}"
    );
    Ok(())
}

/// Two days ahead, two days back behind the beginning, and right again.
fn the_clock_jumps(host: &mut Host) -> Result<()> {
    host.machine.run("vmnat dnat add 7009:192.168.122.10:7/tcp --expires 3h")?;
    host.under_traffic("the clock jumps", |machine| {
        for jump in ["2 days", "4 days ago", "2 days"] {
            machine.run(&format!("date --set '{jump}' && sleep 3"))?;
            is_well(machine)?;
            let forwards = machine.run("vmnat dnat list")?;
            ensure!(forwards.contains("7009") && forwards.contains("7007"), "{jump}: {forwards}");
        }
        Ok(())
    })?;
    host.machine.run("vmnat dnat rm 7009:192.168.122.10:7/tcp")?;
    host.must_be_online()
}

fn machine_log(machine: &mut Machine) -> Result<String> {
    machine.run("journalctl -t vmnat-default -o json | grep 'is ready' | tail -n 1")
}

fn upgrade(host: &mut Host) -> Result<()> {
    host.under_traffic("upgrade", |machine| {
        machine.run("dpkg -i /stage/later.deb")?;
        is_well(machine)
    })?;
    let version = host.machine.run("dpkg-query -f '${Version}' -W vmnat")?;
    ensure!(version.trim() == LATER, "{version}");
    host.machine.run("journalctl -t vmnat-default | grep 'replaced the programs under their hooks'")?;
    host.must_be_online()
}

/// libvirt's network has the bridge, Docker has its chains, and vmnat starts before both or after both; the uplink comes later
/// than all of them.
fn reboot(host: &mut Host, order: &str) -> Result<()> {
    host.machine.run(NEIGHBOURS)?;
    host.machine.run(&format!(
        "mkdir -p /etc/systemd/system/vmnat.service.d; printf '[Unit]\\n{order}=libvirtd.service docker.service\\n' \
         >/etc/systemd/system/vmnat.service.d/order.conf"
    ))?;
    // libvirt makes the bridge at its start.
    let autostart = "mkdir -p /etc/libvirt/qemu/networks/autostart && \
                     ln -sf ../default.xml /etc/libvirt/qemu/networks/autostart/default.xml";
    host.machine.run(autostart)?;
    host.machine.run("systemctl enable docker.service libvirtd.service")?;
    host.machine.reboot()?;
    host.machine.wait_for(120, "systemctl is-active vmnat.service")?;
    // Of several units `is-active` is content with one.
    host.machine.wait_for(
        300,
        "systemctl is-active libvirtd.service && systemctl is-active docker.service && [ -e /sys/class/net/virbr0 ]",
    )?;
    host.machine.run("bash /stage/lab.sh")?;
    // Docker closes FORWARD only where it was the first to turn forwarding on, and libvirt opens it to its own network.
    host.machine.run("iptables -S | grep -q DOCKER-USER && iptables -I FORWARD -j DROP")?;
    host.must_be_online()?;
    is_well(&mut host.machine)?;
    let forwards = host.machine.run("vmnat dnat list")?;
    ensure!(forwards.contains("7007"), "{forwards}");
    let failed = host.machine.run("systemctl --failed --plain --no-legend")?;
    ensure!(!failed.contains("vmnat"), "{failed}");
    host.machine.run("rm -r /etc/systemd/system/vmnat.service.d && systemctl daemon-reload")?;
    Ok(())
}

/// What announces no change is looked at every 30 seconds, and at once when libvirt says that something has changed.
fn the_hooks_notify(machine: &mut Machine) -> Result<()> {
    for (folder, words) in [("network.d", "default started begin -"), ("qemu.d", "web started begin -")] {
        machine.run("echo 0 >/proc/sys/net/ipv4/conf/virbr0/forwarding")?;
        let said = machine
            .run(&format!("timeout 20 /etc/libvirt/hooks/{folder}/vmnat {words} 2>&1 <<<'<hookData/>'"))?;
        ensure!(said.is_empty(), "libvirt would take this for XML: {said}");
        machine.wait_for(15, "[ $(cat /proc/sys/net/ipv4/conf/virbr0/forwarding) = 1 ]")?;
    }
    // Nobody to notify is no failure.
    machine.run("systemctl stop vmnat && /etc/libvirt/hooks/qemu.d/vmnat web started begin - && systemctl start vmnat")?;
    is_well(machine)
}

fn remove(host: &mut Host) -> Result<()> {
    host.machine.run("dpkg -r vmnat")?;
    host.must_be_cut_off()?;
    // The operator's files stay, and libvirt goes on with a hook that finds nobody.
    host.machine.run("/etc/libvirt/hooks/network.d/vmnat default started begin -")?;
    host.machine.run("! ip -br link | grep vmnat; ! ls /sys/fs/bpf/vmnat /run/vmnat/default")?;
    host.machine.run("dpkg -i /stage/vmnat.deb")?;
    host.must_be_online()?;
    is_well(&mut host.machine)
}

fn purge(host: &mut Host, before: &str) -> Result<()> {
    host.machine.run("dpkg --purge vmnat")?;
    host.must_be_cut_off()?;
    host.machine.run("systemctl daemon-reload; ! systemctl list-unit-files | grep vmnat")?;
    let after = files(&mut host.machine)?;
    let left: Vec<&str> =
        after.lines().filter(|line| line.contains("vmnat") && !before.contains(line)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
