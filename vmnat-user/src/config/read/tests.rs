//! Messages about files, word for word.

use super::*;

fn file(name: &str, text: &str) -> SourceText {
    SourceText::new(name, text)
}

fn read(text: &str) -> Config {
    parse(vec![file("vmnat.toml", text)]).unwrap_or_else(|faults| panic!("{faults}"))
}

fn faults(text: &str) -> Faults {
    parse(vec![file("vmnat.toml", text)]).unwrap_err()
}

/// The one fault of a text: where it is, and what.
fn fault(text: &str) -> String {
    let faults = faults(text);
    assert_eq!(faults.count(), 1, "{faults}");
    faults.brief()
}

#[test]
fn a_file_is_read_in_its_order() {
    let config = read(
        "uplink = 'enp3s0'\nno-nat = ['10.8.0.1/16', '10.9.0.0/16']\nguest-flows = 0x10\nkernel-log = true\n\
         [timeout]\nudp_dns = '1m'\nicmp = 5\n\
         [bridge.virbr0]\n[bridge.'br0.5']\nnetwork = '10.0.0.5/24'\nfiltering = 'endpoint-independent'\n\
         [[forward]]\nspec = '80:web:80'\nfrom = ['192.0.2.7', '198.51.100.0/24']\nsteal = true\nexpires = 2030-01-01T00:00:00Z\n",
    );
    let said: Vec<String> = config
        .statements
        .iter()
        .map(|(said, _)| {
            let bridge = said.bridge.as_ref().map_or_else(String::new, |bridge| format!("{bridge} "));
            format!("{bridge}{} {}", said.key, said.value)
        })
        .collect();
    assert_eq!(
        said,
        [
            "uplink \"enp3s0\"",
            "no-nat \"10.8.0.0/16\"",
            "no-nat \"10.9.0.0/16\"",
            "guest-flows 16",
            "kernel-log true",
            "timeout.udp_dns 60",
            "timeout.icmp 5",
            "bridge \"virbr0\"",
            "bridge \"br0.5\"",
            "br0.5 network \"10.0.0.0/24\"",
            "br0.5 filtering \"endpoint-independent\"",
        ]
    );
    let [(Rule { wish, steal: true }, _)] = &config.rules[..] else { panic!("{:?}", config.rules) };
    assert_eq!((wish.from.len(), wish.expires), (2, Some(1_893_456_000)));
}

#[test]
fn port_forwards_are_text_or_tables() {
    let config =
        read("forward = ['80:web:80', { spec = '81:web:81/udp', uplink = 'enp3s0', comment = 'x' }]");
    let specs: Vec<String> = config.rules.iter().map(|(rule, _)| rule.wish.spec.to_string()).collect();
    assert_eq!(specs, ["80:web:80/tcp", "81:web:81/udp"]);
    assert_eq!(config.rules[1].0.wish.uplink.as_deref(), Some("enp3s0"));
}

#[test]
fn every_fault_of_all_files_is_told_with_its_line() {
    let files = vec![
        file(
            "/etc/vmnat/vmnat.toml",
            "guest-flow = 5\npool = \"30000-10000\"\n\n[bridge.virbr0]\nfiltring = 'x'\n",
        ),
        file("/etc/vmnat/conf.d/10-web.toml", "[[forward]]\nspec = \"80:web\"\n"),
    ];
    let told = parse(files).unwrap_err().to_string();
    let expected = "\
4 faults in the configuration, and nothing was changed

error: there is no key \"guest-flow\" here
 --> /etc/vmnat/vmnat.toml:1:1
  |
1 | guest-flow = 5
  | ^^^^^^^^^^
  |
  = help: did you mean \"guest-flows\"?

error: pool: \"30000-10000\" is no range such as 10000-30000, of two ports or more from 1024 on
 --> /etc/vmnat/vmnat.toml:2:8
  |
2 | pool = \"30000-10000\"
  |        ^^^^^^^^^^^^^

error: there is no key \"filtring\" here
 --> /etc/vmnat/vmnat.toml:5:1
  |
5 | filtring = 'x'
  | ^^^^^^^^
  |
  = help: did you mean \"filtering\"?

error: spec: \"80:web\" is no port forward: it needs three or four parts between colons; write [HOSTIP:]PORT[-PORT]:TARGET:PORT[-PORT][/tcp|udp|sctp|tcp+udp], for example 8080:192.168.122.10:80
 --> /etc/vmnat/conf.d/10-web.toml:2:8
  |
2 | spec = \"80:web\"
  |        ^^^^^^^^";
    assert_eq!(told, expected);
}

#[test]
fn a_clash_names_both_places() {
    let files = vec![
        file("vmnat.toml", "pool = '2000-3000'\nforward = ['8080-8089:web:8080-8089']\n"),
        file("conf.d/a.toml", "# mine\npool = '2000-3000'\nforward = ['8085:db:80']\n"),
    ];
    let told = parse(files).unwrap_err().to_string();
    let expected = "\
2 faults in the configuration, and nothing was changed

error: pool is said twice
 --> conf.d/a.toml:2:8
  |
2 | pool = '2000-3000'
  |        ^^^^^^^^^^^
  |
 ::: vmnat.toml:1:8
  |
1 | pool = '2000-3000'
  |        ----------- first said here
  |
  = help: one of the two must go

error: port 8085/tcp has two port forwards
 --> conf.d/a.toml:3:12
  |
3 | forward = ['8085:db:80']
  |            ^^^^^^^^^^^^
  |
 ::: vmnat.toml:2:12
  |
2 | forward = ['8080-8089:web:8080-8089']
  |            ------------------------- 8080-8089:web:8080-8089/tcp has it
  |
  = help: one of the two must go, this one or vmnat.toml:2";
    assert_eq!(told, expected);
}

#[test]
fn two_files_may_say_something_about_one_bridge() {
    let files = vec![
        file("a", "[bridge.virbr0]\nnetwork = '10.0.0.0/24'\n"),
        file("b", "[bridge.virbr0]\nnetwork = '10.1.0.0/24'\nfiltering = 'endpoint-independent'\n"),
    ];
    assert_eq!(parse(files).unwrap().statements.len(), 4);
}

#[test]
fn each_mistake_is_named_with_place_and_remedy() {
    for (text, told) in [
        ("flows = 'many'", "vmnat.toml:1:9: flows: \"many\" is text, and a number is needed"),
        ("flows = 5", "vmnat.toml:1:9: flows: 5 lies outside 1024 to 16777216"),
        ("flows = -5", "vmnat.toml:1:9: flows: -5 is no number from 0 to 18446744073709551615"),
        ("flows = 1.5", "vmnat.toml:1:9: flows: a broken number is out of place"),
        ("flows = [5000]", "vmnat.toml:1:9: flows: a list is given, and one value is needed"),
        ("kernel-log = 1", "vmnat.toml:1:14: kernel-log: 1 is a number, and true or false is needed"),
        ("uplink = ['a', 7]", "vmnat.toml:1:16: uplink: 7 is a number, and text in quotes is needed"),
        ("uplink = ['a', 'a']", "vmnat.toml:1:16: uplink: \"a\" is said twice"),
        ("no-nat = '10.0.0'", "vmnat.toml:1:10: no-nat: \"10.0.0\" is no network such as 192.168.122.0/24"),
        ("hook = 'xdp'", "vmnat.toml:1:8: hook: \"xdp\" is neither \"tcx\" nor \"clsact\""),
        ("lease-file = 'x'", "vmnat.toml:1:14: lease-file: \"x\" is no whole path: begin it with \"/\""),
        ("timeout = 5", "vmnat.toml:1:11: timeout is a number, and a table is needed"),
        ("timeout.icmp = 0", "vmnat.toml:1:16: timeout.icmp: 0 is no span of time of a second or more"),
        (
            "timeout.icmp = '3w'",
            "vmnat.toml:1:16: timeout.icmp: \"3w\" is no span of time: write 500ms, 30s, 2m, 1h or 7d",
        ),
        ("bridge = 'virbr0'", "vmnat.toml:1:10: bridge is text, and a table for each bridge is needed"),
        ("bridge.virbr0 = 1", "vmnat.toml:1:17: bridge.virbr0 is a number, and a table is needed"),
        (
            "[bridge.'a b']",
            "vmnat.toml:1:9: bridge: \"a b\" is no interface's name: 1 to 15 characters without blanks, \"/\" and \":\"",
        ),
        ("forward = '80:web:80'", "vmnat.toml:1:11: forward is text, and a list is needed"),
        ("forward = [5]", "vmnat.toml:1:12: a port forward is a number, and text or a table is needed"),
        ("[[forward]]\ncomment = 'x'", "vmnat.toml:1:1: this port forward does not say what leads where"),
        (
            "[[forward]]\nspec = '0:a:1'",
            "vmnat.toml:2:8: spec: \"0:a:1\" is no port forward: port 0 lies outside 1-65535",
        ),
        (
            "[[forward]]\nspec = '1:a:1'\nexpires = 'soon'",
            "vmnat.toml:3:11: expires: \"soon\" is no date and time with its zone",
        ),
        (
            "[[forward]]\nspec = '1:a:1'\nfrom = ['1.2.3.4', '1.2.3.4']",
            "vmnat.toml:3:20: from: \"1.2.3.4/32\" is said twice",
        ),
        (
            "[[forward]]\nspec = '1.2.3.4:1:a:1'\nuplink = 'e'",
            "vmnat.toml:2:8: spec names the address 1.2.3.4 and uplink the interface e",
        ),
        ("pool = 1\npool = 2", "vmnat.toml:2:1: this is no TOML: duplicate key"),
        ("a = [", "vmnat.toml:1:6: this is no TOML: "),
    ] {
        let found = fault(text);
        assert!(found.starts_with(told), "{text}:\n{found}\n{told}");
    }
}

#[test]
fn keys_in_the_wrong_table_are_led_to_the_right_one() {
    for (text, hint) in [
        ("filtering = 'x'", "it holds for a bridge: write it below [bridge.NAME]"),
        ("[bridge.virbr0]\npool = 'x'", "it holds for the instance: write it before the first table"),
        ("udp_dns = 5", "it is a timeout: write it below [timeout]"),
        ("spec = '80:web:80'", "it belongs to a port forward: write it below [[forward]]"),
        ("timeout.udp = 5", "the keys are tcp_half_open, "),
        ("guest_flows = 5", "did you mean \"guest-flows\"?"),
        ("uplinks = 'x'", "did you mean \"uplink\"?"),
        ("forwards = []", "did you mean \"forward\"?"),
        ("[bridges.virbr0]", "did you mean \"bridge\"?"),
        ("timeout.udp_dsn = 5", "did you mean \"udp_dns\"?"),
    ] {
        let told = faults(text).to_string();
        assert!(told.contains(hint), "{text}: {told}");
    }
}

#[test]
fn all_faults_of_the_syntax_are_told() {
    let faults = faults("a = \nb = ]\nc = 'x\n");
    assert!(faults.count() >= 3, "{faults}");
}

#[test]
fn thousands_of_faults_are_told_in_part() {
    let text: String = (0..5_000)
        .flat_map(|number| ["nonsense".to_owned(), number.to_string(), " = 1\n".to_owned()])
        .collect();
    let told = faults(&text).to_string();
    assert!(told.starts_with("5000 faults") && told.ends_with("and 4980 more"), "{told}");
}
