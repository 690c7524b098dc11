//! Rules of firewalls, and whether guests get through them to the world.

/// Rules of nftables, and whether guests get through them.
pub(super) const NFT: [(&str, bool, &str); 18] = [
    ("nothing", true, "table ip t { }"),
    ("policy drop", false, "table inet f { chain c { type filter hook forward priority 0; policy drop; } }"),
    ("policy drop, guests let through", true, "table inet f { chain c { type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname virbr0 oifname enp3s0 accept } }"),
    ("an accept elsewhere does not help", false, "table inet f { chain c { type filter hook forward priority 0; policy drop; } }
      table ip g { chain c { type filter hook forward priority -10; policy accept; iifname virbr0 accept; oifname virbr0 accept } }"),
    ("a map of states, a map of names, a chain left for good", true, "table inet f {
        chain guests { ip saddr 192.168.122.0/24 accept; drop }
        chain c { type filter hook forward priority 0; policy drop;
          ct state vmap { established : accept, related : accept, invalid : drop }
          iifname vmap { \"virbr0\" : goto guests, \"virbr9\" : drop } } }"),
    ("a chain left for good does not come back", false, "table inet f {
        chain guests { ip saddr 10.0.0.0/8 accept }
        chain c { type filter hook forward priority 0; policy drop; iifname virbr0 goto guests; accept } }"),
    ("a chain that is called comes back", true, "table inet f {
        chain guests { ip saddr 10.0.0.0/8 accept; return; drop }
        chain c { type filter hook forward priority 0; policy drop; iifname virbr0 jump guests; accept } }"),
    ("a range of addresses", false, "table ip f { chain c { type filter hook forward priority 0;
        ip saddr 192.168.122.5-192.168.122.20 drop } }"),
    ("a set of ranges that guests are not in", true, "table ip f { set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.122.128/25 } }
        chain c { type filter hook forward priority 0; ip saddr @s drop } }"),
    ("a set of ranges that guests are in", false, "table ip f { set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.122.0/25 } }
        chain c { type filter hook forward priority 0; ip saddr @s reject } }"),
    ("fields together", false, "table inet f { chain c { type filter hook forward priority 0;
        iifname . meta l4proto { virbr0 . udp, virbr0 . tcp, virbr0 . icmp } drop } }"),
    ("marks", true, "table ip f { chain p { type filter hook prerouting priority -150; iifname virbr0 meta mark set 0x7 }
        chain c { type filter hook forward priority 0; policy drop; ct state established accept; meta mark 0x7 accept } }"),
    ("before routing", false, "table ip f { chain c { type filter hook prerouting priority -300; ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 drop } }"),
    ("after routing", false, "table inet f { chain c { type filter hook postrouting priority 0; oifname enp3s0 ip protocol { tcp, udp, icmp } ct state new drop } }"),
    ("answers only", false, "table ip f { chain c { type filter hook forward priority 0; oifname virbr0 drop } }"),
    ("the type of an address", true, "table ip f { chain c { type filter hook forward priority 0; fib daddr type local drop; fib saddr type != unicast drop } }"),
    ("the bridge", false, "table bridge f { chain c { type filter hook prerouting priority 0; iifname vnet1 ether type ip drop } }"),
    ("the port's own ingress", false, "table netdev f { chain c { type filter hook ingress device vnet1 priority 0; ip saddr 192.168.122.0/24 drop } }"),
];

/// Rules of iptables, and whether guests get through them; the program is either of both.
pub(super) const IPTABLES: [(&str, bool, &str); 9] = [
    ("policy drop", false, ":FORWARD DROP\n"),
    (
        "guests let through",
        true,
        ":FORWARD DROP\n-A FORWARD -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i virbr0 ! -o virbr0 -j ACCEPT\n",
    ),
    ("a state of old", true, ":FORWARD DROP\n-A FORWARD -m state --state ESTABLISHED,NEW -j ACCEPT\n"),
    ("a name's beginning", false, ":FORWARD ACCEPT\n-A FORWARD -i virb+ -j REJECT\n"),
    (
        "a chain and back",
        false,
        ":FORWARD ACCEPT\n:G - [0:0]\n-A FORWARD -j G\n-A FORWARD -s 192.168.122.0/24 -j DROP\n-A G -i docker0 -j ACCEPT\n-A G -j RETURN\n",
    ),
    (
        "a chain left for good",
        true,
        ":FORWARD ACCEPT\n:G - [0:0]\n-A FORWARD -g G\n-A FORWARD -j DROP\n-A G -i docker0 -j DROP\n",
    ),
    (
        "a type of address",
        false,
        ":FORWARD ACCEPT\n-A FORWARD -i virbr0 -m addrtype ! --dst-type LOCAL -j DROP\n",
    ),
    (
        "ports together",
        true,
        ":FORWARD ACCEPT\n-A FORWARD -i virbr0 -p udp -m multiport --dports 137,138:139 -j DROP\n-A FORWARD -i virbr0 -p tcp -m multiport --dports 25,445 -j DROP\n",
    ),
    (
        "not from there",
        false,
        ":FORWARD ACCEPT\n-A FORWARD ! -s 10.0.0.0/8 -i virbr0 -m comment --comment why -j DROP\n",
    ),
];
