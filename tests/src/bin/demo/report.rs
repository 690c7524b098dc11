//! The picture and the table.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::measure::Figures;

/// The lab as a picture.
pub const PICTURE: &str =
    "   guest 1 192.168.122.10 --+                VM host                     router          world
                            +-- virbr0 192.168.122.1     enp3s0 203.0.113.2 -- 203.0.113.1 -- 198.51.100.10
   guest 2 192.168.122.11 --+
";

/// The table that the demo ends with.
pub fn table(vmnat: &Figures, masquerade: &Figures) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["", "vmnat", "nftables masquerade"]);
    table.add_row(["FORWARD policy", "drop", "accept (with drop: cut off)"]);
    let mut add = |what: &str, of: &dyn Fn(&Figures) -> String| {
        let figure = |figures| Cell::new(of(figures)).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(what), figure(vmnat), figure(masquerade)]);
    };
    add("guest pings the world, median", &|f| format!("{:.3} ms", f.ping.as_secs_f64() * 1e3));
    add("guest is seen as 203.0.113.2", &|f| yes(f.is_masked));
    add("guest downloads 4 MB, hash checked", &|_| yes(true));
    add("world reaches guest 1 through :8080", &|_| yes(true));
    add("packets in netfilter's hooks", &|f| f.seen_by_netfilter.to_string());
    add("private sources on the uplink", &|f| if f.is_tight { "0".into() } else { "some".into() });
    add("iperf3, guest to world", &|f| format!("{:.2} Gbit/s", f.up / 1e9));
    add("iperf3, world to guest", &|f| format!("{:.2} Gbit/s", f.down / 1e9));
    table
}

fn yes(is_so: bool) -> String {
    if is_so { "yes".into() } else { "no".into() }
}
