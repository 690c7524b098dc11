//! A second way out: another wire between host and router, which no route uses yet.

use anyhow::Result;

use super::{Lab, octets, watch::LeakWatch};

/// The host's interface on it.
pub const SECOND_UPLINK: &str = "enp4s0";
/// The host's address on it.
pub const SECOND_EXTERNAL: &str = "203.0.114.2";
/// The router's address on it.
pub const SECOND_ROUTER: &str = "203.0.114.1";

impl Lab {
    /// Lays the wire, and watches it at the router's end.
    ///
    /// # Errors
    ///
    /// When an interface cannot be made.
    pub fn lay_second_uplink(&self) -> Result<LeakWatch> {
        self.router.ip(&format!(
            "link add wan1 type veth peer name {SECOND_UPLINK} netns {}\n\
             address add {SECOND_ROUTER}/24 dev wan1\n\
             link set wan1 up\n",
            self.host.path()
        ))?;
        let address = format!("address add {SECOND_EXTERNAL}/24 dev {SECOND_UPLINK}\n");
        self.host.ip(&format!("{address}link set {SECOND_UPLINK} up\n"))?;
        LeakWatch::new(&self.router, "wan1", octets(SECOND_EXTERNAL)?)
    }
}
