#!/bin/sh
# An example for `cargo xtask bench packet --mode-hook "iptables-legacy=docs/benchmarks/mode-hook.sh"`: the plainest masquerade of
# iptables-legacy. It is called with `up` before its turns and with `down` after them, in the network namespace of a
# host that has the bridge, a guest's port, the uplink with its address and a default route. What it sets up must translate
# the guest's source to $VMNAT_BENCH_EXTERNAL and let answers through; the benchmark looks at the first frames.
set -eu

case $1 in
up)
    echo 1 >/proc/sys/net/ipv4/ip_forward
    iptables-legacy -t nat -A POSTROUTING -s "$VMNAT_BENCH_NETWORK" -o "$VMNAT_BENCH_UPLINK" -j MASQUERADE
    iptables-legacy -P FORWARD DROP
    iptables-legacy -A FORWARD -i "$VMNAT_BENCH_BRIDGE" -o "$VMNAT_BENCH_UPLINK" -j ACCEPT
    iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    ;;
down)
    iptables-legacy -F FORWARD
    iptables-legacy -t nat -F POSTROUTING
    ;;
esac
