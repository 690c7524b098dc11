//! Which port a guest gets when its own is taken (RFC 7857 section 9): none that anybody could guess.

use anyhow::{Context as _, Result, ensure};

use super::scene::{S1, S2, Scene};

const CONTENDED: u16 = 200;

/// Guest 2 takes 200 ports in a row, guest 1 wants the same: what it gets instead. Each is asked for towards another remote.
fn changed_ports(scene: &Scene, first: u16) -> Result<Vec<u16>> {
    let wanted = first..first + CONTENDED;
    for port in wanted.clone() {
        scene.open(2, port, S1, 9)?;
    }
    wanted.map(|port| scene.open(1, port, if port % 2 == 0 { S1 } else { S2 }, 9)).collect()
}

/// 1. 200 contended ports in a row; 2. what guest 1 gets is neither in order nor in even steps nor in one region; 3. the same
///    again under another secret, after `down`, the loss of what it keeps, and `up`, gives others.
#[test]
fn changed_ports_cannot_be_guessed() -> Result<()> {
    let mut scene = Scene::new()?;
    let ports = changed_ports(&scene, 20_000)?;
    let is_hosts = |port: &&u16| (32_768..61_000).contains(*port);
    ensure!(!ports.iter().any(|port| is_hosts(&port)), "ports of the host's own range: {ports:?}");
    let mut distinct = ports.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(distinct.len() == ports.len(), "{} ports for {} endpoints", distinct.len(), ports.len());

    // 199 pairs of neighbours: 99.5 rise on average, with a deviation of 4.1; seven of these are 29.
    let pairs = || ports.iter().zip(&ports[1..]);
    let rises = pairs().filter(|(one, next)| one < next).count();
    ensure!((70..=129).contains(&rises), "{rises} of 199 rise: the ports are in order: {ports:?}");
    let mut steps: Vec<i32> = pairs().map(|(one, next)| i32::from(*next) - i32::from(*one)).collect();
    steps.sort_unstable();
    let most = steps.chunk_by(PartialEq::eq).map(<[i32]>::len).max();
    ensure!(most <= Some(4), "one step occurs {most:?} times in 199: {ports:?}");
    let chi_square = chi_square(&ports);
    ensure!(chi_square < 61.0, "chi-square {chi_square} over 16 regions: {ports:?}");

    scene.lab.vmnat_ok(&["down"])?;
    // Secret and mappings are kept over `down`, so that freed ports rest; without them the secret is another.
    std::fs::remove_file("/var/lib/vmnat/default/mappings").context("the mappings that `down` keeps")?;
    scene.lab.up(vmnat_tests::lab::vmnat::Hook::of_the_kernel())?;
    let others = changed_ports(&scene, 20_000)?;
    let same = ports.iter().zip(&others).filter(|(one, other)| one == other).count();
    ensure!(same <= 3, "{same} of 200 ports are the same under another secret");
    scene.lab.assert_invariants()
}

/// Over 16 regions of the pool of even width; 15 degrees of freedom exceed 61 once in three million times.
fn chi_square(ports: &[u16]) -> f64 {
    // The pool: 1024 to 32,767 and 61,000 to 65,535, what Linux's own `ip_local_port_range` leaves.
    let place = |port: u16| usize::from(if port < 32_768 { port - 1024 } else { port - 61_000 + 31_744 });
    let mut counts = [0.0; 16];
    for port in ports {
        counts[place(*port) * 16 / 36_280] += 1.0;
    }
    let expected = f64::from(CONTENDED) / 16.0;
    counts.iter().map(|count: &f64| (count - expected).powi(2) / expected).sum()
}
