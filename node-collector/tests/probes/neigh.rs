use super::*;

/// Sums of a column of `/proc/net/stat/*`, by `lnstat`; `entries` is not a sum.
fn lnstat(file: &str, key: &str) -> i64 {
    let output = std::process::Command::new("lnstat")
        // Once, and for an interval of a second: it divides by that.
        .args(["-j", "-c", "1", "-i", "1", "-f", file, "-k", key])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    json[key].as_i64().unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn neighbours_of_a_pod_fill_the_table_of_the_node() {
    let Some(lab) = Lab::for_test("neigh") else {
        return;
    };
    let (a, b) = (lab.pod("neigh", "a").unwrap(), lab.pod("neigh", "b").unwrap());
    lab.link(&a, &b).unwrap();
    let mut collector = Collector::of(&[&a, &b]);
    let count = 400;
    for (family, file) in [(Family::V4, "arp_cache"), (Family::V6, "ndisc_cache")] {
        let labels = [label(family)];
        let value = |round: &Round, column: &str| round.value("neigh", column, "node", &labels);
        let before = collector.read();
        assert_eq!(
            (before.rows("neigh", "a"), before.rows("neigh", "node")),
            (0, 2),
            "once, for the node"
        );
        let (version, net) = match family {
            Family::V4 => ("ipv4", "192.0.2"),
            Family::V6 => ("ipv6", "2001:db8::"),
        };
        for (column, key) in [
            ("entries_gc_threshold", 1),
            ("entries_soft_limit", 2),
            ("entries_limit", 3),
        ] {
            let path = format!("/proc/sys/net/{version}/neigh/default/gc_thresh{key}");
            let theirs: i64 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
            assert_eq!(value(&before, column), theirs);
        }
        // Permanent ones do not count towards the limits, so nobody else's neighbours suffer.
        let lines: Vec<String> = (0..count)
            .map(|i| {
                let address = match family {
                    Family::V4 => format!("198.51.{}.{}", 100 + i / 200, 1 + i % 200),
                    Family::V6 => format!("{net}{:x}", i + 1),
                };
                format!("neigh add {address} lladdr 02:00:00:00:00:01 dev eth0 nud permanent")
            })
            .collect();
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), lines.join("\n")).unwrap();
        a.command("ip", &["-batch", script.path().to_str().unwrap()]).unwrap();
        // Others on this machine may have neighbours that come and go meanwhile.
        let slack = 100;
        let after = until(&mut collector, "the same as lnstat", |r| {
            value(r, "entries") == lnstat(file, "entries") && value(r, "allocations") == lnstat(file, "allocs")
        });
        let grown = value(&after, "entries") - value(&before, "entries");
        assert!((grown - count).abs() <= slack, "{grown}");
        assert!(value(&after, "allocations") - value(&before, "allocations") >= count);
        assert!(value(&after, "table_fulls") >= 0);
    }
    a.ip("link del eth0").unwrap();
    let gone = until(&mut collector, "neighbours to go", |r| {
        r.value("neigh", "entries", "node", &["ipv4"]) < count
    });
    assert!(gone.value("neigh", "destroys", "node", &["ipv4"]) >= count);
}
