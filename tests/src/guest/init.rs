//! What runs first in a machine. Each line that it reports is `vm:NAME ok|FAIL DETAIL`.

/// A guest's beginning: modules, addresses, and the words for a report.
const GUEST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in /mod/*.ko; do insmod "$module"; done
ip link set lo up; ip link set eth0 up
ip addr add $LAB_ADDRESS/24 dev eth0; ip route add default via $LAB_GATEWAY
report() { name=$1; shift; if out=$("$@" 2>&1); then echo "vm:$name ok $out"; else echo "vm:$name FAIL $out"; fi; }
quiet() { "$@" >/dev/null; }
"#;

/// It serves with busybox, and tries the world.
const CALLS: &str = r#"
httpd -p 80 -h /www
hash() { sum=$(wget -q -O - "http://$LAB_SERVER/bytes/$LAB_SIZE" | sha256sum); echo "$sum"; [ "${sum%% *}" = "$LAB_HASH" ]; }
query() { answer=$(nslookup -type=a "$LAB_QUESTION" "$LAB_RESOLVER" | awk '/^Address/{a=$NF} END{print a}'); echo "$answer"; [ "$answer" = "$LAB_EXTERNAL" ]; }
report ping quiet ping -q -c 3 -w 10 $LAB_SERVER
report download hash
report query query
"#;

/// A guest's beginning without an address; the names of its reports are those of checks, with `-` for each space.
const FRESH: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in /mod/*.ko; do insmod "$module"; done
ip link set lo up; ip link set eth0 up
httpd -p 80 -h /www
report() { name=$1; shift; if out=$("$@" 2>&1); then echo "vm:$name ok" $out; else echo "vm:$name FAIL" $out; fi; }
quiet() { "$@" >/dev/null; }
cat >/tmp/bound <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev eth0; ip route add default via $router; echo $ip >/tmp/address; echo $router >/tmp/router
END
chmod +x /tmp/bound
lease() { udhcpc -i eth0 -n -q -f -t 8 -T 1 -s /tmp/bound >/dev/null 2>&1; cat /tmp/address && [ "$(cat /tmp/router)" = $LAB_GATEWAY ]; }
query() { answer=$(timeout 6 nslookup -type=a "$LAB_QUESTION" "$1" | awk '/^Address/{a=$NF} END{print a}'); echo "$answer"; [ "$answer" = "$LAB_EXTERNAL" ]; }
talk() { seen=$(timeout 6 nc -w 5 $1 7000 </dev/null); echo "$seen"; case $seen in "$2":*) ;; *) false;; esac; }
hash() { sum=$(timeout 40 wget -q -O - "http://$LAB_SERVER/bytes/$LAB_SIZE" | sha256sum); echo "$sum"; [ "${sum%% *}" = "$LAB_HASH" ]; }
report dhcp lease
[ -e /tmp/address ] || { ip addr add $LAB_ADDRESS/24 dev eth0; ip route add default via $LAB_GATEWAY; echo $LAB_ADDRESS >/tmp/address; }
report gateway quiet ping -q -c 1 -w 8 $LAB_GATEWAY
report gw-dns query $LAB_GATEWAY
report ping quiet ping -q -c 1 -w 5 $LAB_SERVER
report fragments quiet ping -q -c 1 -s 3000 -w 5 $LAB_SERVER
report tcp talk $LAB_SERVER $LAB_EXTERNAL
report dns query $LAB_RESOLVER
report http hash
report sibling talk $LAB_SIBLING "$(cat /tmp/address)"
"#;

/// It serves with nginx and sshd, whose complaints go to the console. A server in the background keeps its standard
/// error open, for which a report would wait.
const SERVES: &str = r#"
mkdir /dev/pts; mount -t devpts devpts /dev/pts
started() { "$@" >/tmp/said 2>&1 </dev/null || { cat /tmp/said; false; }; }
report nginx started /usr/sbin/nginx -c /etc/nginx/nginx.conf
report sshd started /usr/sbin/sshd -E /dev/console
"#;

/// It does what it is told by a port of virtio's, a line a command. A read ends at once while the host has not opened its end.
/// By way of a pipe, so that what is read ahead is not lost to the commands.
const WORKS: &str = r"
exec 3<>/dev/$(ls /sys/class/virtio-ports)
report worker true
while :; do cat; sleep 1; done <&3 | sh >&3 2>&1
";

/// Init never ends: the kernel would panic.
const END: &str = r#"
echo "vm:done ok"
while :; do sleep 60; done
"#;

/// Init of a guest that tries the world.
pub(super) fn caller() -> String {
    [GUEST, CALLS, END].concat()
}

/// Init of a guest that asks for its address first.
pub(super) fn fresh() -> String {
    [FRESH, END].concat()
}

/// Init of a guest that does what it is told.
pub(super) fn worker() -> String {
    [GUEST, WORKS, END].concat()
}

/// Init of a guest that runs real servers.
pub(super) fn server() -> String {
    [GUEST, SERVES, END].concat()
}

/// The host's init: bridge, guest and world in namespaces, nothing forwarded, then vmnat.
pub(super) const HOST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
# This shell prefers its own applets to what PATH names.
ip() { /sbin/ip "$@"; }
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null; mount -t tmpfs run /run
mount -t cgroup2 none /sys/fs/cgroup
mkdir /var; ln -s /run /var/run
for module in /mod/*.ko; do insmod "$module"; done
report() { name=$1; shift; if out=$("$@" 2>&1); then say=ok; else say=FAIL; fi; echo "vm:$name $say $(echo $out)"; }
guest() { nsenter --net=/run/netns/guest "$@"; }
world() { nsenter --net=/run/netns/world "$@"; }
ip link set lo up; ip netns add guest; ip netns add world
ip link add virbr0 type bridge; ip addr add 192.168.122.1/24 dev virbr0; ip link set virbr0 up
ip link add vnet1 type veth peer name eth0 netns guest; ip link set vnet1 master virbr0 up
ip link add enp3s0 type veth peer name eth0 netns world
ip addr add 203.0.113.2/24 dev enp3s0; ip link set enp3s0 up; ip route add default via 203.0.113.1
guest /sbin/ip addr add 192.168.122.10/24 dev eth0; guest /sbin/ip link set eth0 up; guest /sbin/ip route add default via 192.168.122.1
world /sbin/ip addr add 203.0.113.1/24 dev eth0; world /sbin/ip link set eth0 up
world httpd -p 80 -h /www; guest httpd -p 80 -h /www
cut_off() { ! guest ping -q -c 1 -w 1 203.0.113.1; }
hash() { sum=$("$1" wget -q -O - "$2" | sha256sum); echo "$sum"; [ "${sum%% *}" = "$LAB_HASH" ]; }
left_as_found() { [ ! -e /sys/fs/bpf/vmnat ] && [ "$(cat /proc/sys/net/ipv4/conf/virbr0/forwarding)" = 0 ]; }
report kernel uname -r
report gateway guest ping -q -c 1 -w 5 192.168.122.1
report control cut_off
report up vmnat up --bridge virbr0 --uplink enp3s0
report dnat vmnat dnat add 8080:192.168.122.10:80
report ping guest ping -q -c 3 -w 10 203.0.113.1
report download hash guest http://203.0.113.1/bytes
report forward hash world http://203.0.113.2:8080/bytes
report hairpin hash guest http://203.0.113.2:8080/bytes
report loopback hash env http://127.0.0.1:8080/bytes
report external hash env http://203.0.113.2:8080/bytes
report status vmnat status
report down vmnat down
report left left_as_found
echo "vm:done ok"
while :; do sleep 60; done
"#;
