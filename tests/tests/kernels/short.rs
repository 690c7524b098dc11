//! What `./dev test` runs of it.

use anyhow::Result;
use vmnat_tests::kernels::{Inside, Selection};

/// For each thing that vmnat wants of the kernel, the scenario that needs most of it.
const SHORT: Selection = Selection {
    filters: &[
        "kernel::",
        "errors::clsact::a_small_link_behind_the_router_is_found_out",
        "firewalls::clsact::br_netfilter_and_both_firewalls_do_not_see_translated_packets",
        "forwards::clsact::world_reaches_the_guest_and_keeps_its_address",
        "hostile::clsact::a_forged_source_never_leaves",
        "life::clsact::a_recreated_bridge_is_attached_again",
        "life::clsact::down_leaves_the_host_as_it_was_found",
        "life::clsact::guests_stay_online_when_the_agent_is_killed_under_traffic",
        "neighbours::clsact::guests_reach_each_other",
        "room::clsact::fragments_come_out_in_order",
        "services::clsact::the_hosts_own_server_answers_with_input_on_drop",
        "sources::clsact::everyone_reaches_the_guest",
        "takeover::clsact::conversations_through_masquerade_survive_up",
        "traffic::clsact::udp_of_every_size_arrives_unharmed",
    ],
    // The same again, past one more firewall.
    skips: &["guest_past_", "each_other_when_"],
    least: 15,
};

#[test]
fn a_few_scenarios_hold_on_linux_6_1() -> Result<()> {
    Inside::boot("bookworm", "6.1")?.must_pass(&SHORT)
}
