//! Kernels of other shapes than the one that runs here.

use sonde_ebpf_common::fields::{ARGUMENTS, FIELDS, Field, NO_ARGUMENT};

use super::raw::BtfError;
use super::resolve::Absent;
use super::write::{STRUCT, UNION, Writer};
use super::*;

/// What differs between kernels, as kernel-signals.md tells it.
struct Shape {
    reason: bool,
    rx_sk: bool,
    rx_sk_const: bool,
    /// Functions with parameter names beside the tracepoint's typedef.
    names: bool,
    /// 5.10: `atomic64_t net_cookie`, made on demand.
    lazy_cookie: bool,
    /// Members of `sk_buff` from the packet type on lie in a union of a struct with and one without a name (5.18).
    headers_group: bool,
    /// Words before `len`, to move everything.
    shift: u32,
    reasons: &'static [(&'static str, u32)],
}

const K5_10: Shape = Shape {
    reason: false,
    rx_sk: false,
    rx_sk_const: false,
    names: false,
    lazy_cookie: true,
    headers_group: false,
    shift: 0,
    reasons: &[],
};
const K6_1: Shape = Shape {
    reason: true,
    names: true,
    lazy_cookie: false,
    headers_group: true,
    shift: 2,
    reasons: &[
        ("SKB_NOT_DROPPED_YET", 0),
        ("SKB_DROP_REASON_NOT_SPECIFIED", 1),
        ("SKB_DROP_REASON_NO_SOCKET", 2),
        ("SKB_DROP_REASON_NETFILTER_DROP", 7),
        ("SKB_DROP_REASON_MAX", 67),
    ],
    ..K5_10
};
const K6_12: Shape = Shape {
    rx_sk: true,
    shift: 3,
    reasons: &[
        ("SKB_CONSUMED", 1),
        ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
        ("SKB_DROP_REASON_NO_SOCKET", 3),
        ("SKB_DROP_REASON_NETFILTER_DROP", 11),
        ("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
    ],
    ..K6_1
};
const K7_3: Shape = Shape {
    rx_sk_const: true,
    names: false,
    shift: 1,
    reasons: &[
        ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
        ("SKB_DROP_REASON_NO_SOCKET", 3),
        ("SKB_DROP_REASON_NETFILTER_DROP", 12),
    ],
    ..K6_12
};

fn kernel(shape: &Shape) -> Vec<u8> {
    let w = &mut Writer::new();
    let [u8_, u16_, u32_, u64_] = [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8)].map(|(n, s)| w.int(n, s));
    let be16 = w.typedef("__be16", u16_);
    let pointer = w.pointer(0);
    let name = w.array(u8_, 16);
    let atomic = w.structure(STRUCT, "", 8, &[("counter", u64_, 0, 0)]);
    let atomic = w.typedef("atomic64_t", atomic);
    let ns = w.structure(
        STRUCT,
        "ns_common",
        24,
        &[("ops", pointer, 0, 0), ("inum", u32_, 128, 0)],
    );
    let cookie = if shape.lazy_cookie { atomic } else { u64_ };
    let net = w.structure(STRUCT, "net", 128, &[("ns", ns, 64, 0), ("net_cookie", cookie, 512, 0)]);
    let net = w.pointer(net);
    let possible = w.structure(STRUCT, "", 8, &[("net", net, 0, 0)]);
    let possible = w.typedef("possible_net_t", possible);
    let common = w.structure(
        STRUCT,
        "sock_common",
        64,
        &[("skc_family", u16_, 128, 0), ("skc_net", possible, 384, 0)],
    );
    let sock = w.structure(STRUCT, "sock", 512, &[("__sk_common", common, 0, 0)]);
    let device = w.structure(
        STRUCT,
        "net_device",
        512,
        &[
            ("name", name, 0, 0),
            ("ifindex", u32_, 256, 0),
            ("nd_net", possible, 1024, 0),
        ],
    );
    let device = w.pointer(device);
    w.structure(
        STRUCT,
        "dst_entry",
        64,
        &[("dev", device, 0, 0), ("input", pointer, 384, 0)],
    );
    w.structure(
        STRUCT,
        "skb_shared_info",
        320,
        &[("gso_size", u16_, 32, 0), ("gso_segs", u16_, 48, 0)],
    );

    let scratch = w.structure(UNION, "", 8, &[("dev", device, 0, 0), ("dev_scratch", u64_, 0, 0)]);
    let list = w.structure(
        STRUCT,
        "",
        24,
        &[("next", pointer, 0, 0), ("prev", pointer, 64, 0), ("", scratch, 128, 0)],
    );
    let rb_node = w.structure(STRUCT, "rb_node", 24, &[]);
    let first = w.structure(UNION, "", 24, &[("", list, 0, 0), ("rbnode", rb_node, 0, 0)]);
    let owner = w.structure(UNION, "", 8, &[("sk", pointer, 0, 0), ("ip_defrag_offset", u32_, 0, 0)]);
    // Time stamps lie in a union that moved over the years; nobody asks for them here, they must not be in the way.
    let stamp = w.structure(UNION, "", 8, &[("tstamp", u64_, 0, 0), ("skb_mstamp_ns", u64_, 0, 0)]);
    let bits = [
        ("cloned", u8_, 0, 1),
        ("pkt_type", u8_, 13, 3),
        ("skb_iif", u32_, 32, 0),
        ("protocol", be16, 64, 0),
    ];
    let headers = [
        ("transport_header", u16_, 80, 0),
        ("network_header", u16_, 96, 0),
        ("mac_header", u16_, 112, 0),
    ];
    let group = [bits.as_slice(), headers.as_slice()].concat();
    let at = 512 + shape.shift * 64;
    let mut members = vec![
        ("", first, 0, 0),
        ("", owner, 192, 0),
        ("", stamp, 256, 0),
        ("_skb_refdst", u64_, 320, 0),
    ];
    members.push(("len", u32_, 384 + shape.shift * 64, 0));
    members.push(("data_len", u32_, 416 + shape.shift * 64, 0));
    if shape.headers_group {
        let inner = w.structure(STRUCT, "", 16, &group);
        let outer = w.structure(UNION, "", 16, &[("", inner, 0, 0), ("headers", inner, 0, 0)]);
        members.push(("", outer, at, 0));
    } else {
        members.extend(
            group
                .iter()
                .map(|(name, id, bit, width)| (*name, *id, bit + at, *width)),
        );
    }
    let tail = w.typedef("sk_buff_data_t", u32_);
    members.extend([("tail", tail, at + 128, 0), ("end", tail, at + 160, 0)]);
    members.extend([("head", pointer, at + 192, 0), ("data", pointer, at + 256, 0)]);
    // A real sk_buff has bit fields of its own level below 5.18, which sets the flag that changes how offsets are kept.
    let skb = w.structure(STRUCT, "sk_buff", 256, &members);

    let skb = w.pointer(skb);
    let sock = if shape.rx_sk_const { w.constant(sock) } else { sock };
    let sock = w.pointer(sock);
    let reason = w.enumeration("skb_drop_reason", shape.reasons);
    let mut arguments = vec![("skb", skb), ("location", pointer)];
    arguments.extend(shape.reason.then_some(("reason", reason)));
    arguments.extend(shape.rx_sk.then_some(("rx_sk", sock)));
    w.tracepoint("kfree_skb", &arguments, shape.names);
    w.finish()
}

fn field(btf: &Btf, symbol: &str) -> Result<Field, Absent> {
    resolve_field(btf, FIELDS.iter().find(|f| f.symbol == symbol).unwrap())
}

fn argument(btf: &Btf, symbol: &str) -> u32 {
    resolve_argument(btf, ARGUMENTS.iter().find(|a| a.symbol == symbol).unwrap()).unwrap_or(NO_ARGUMENT)
}

/// The made-up kernels have what the programs of drops read; the running one has everything.
fn of_drops(symbol: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "SKB_CB",
        "SKB_TSTAMP_TYPE",
        "SKB_TRUESIZE",
        "SKB_ENCAPSULATION",
        "SKB_INNER_TRANSPORT",
        "SHARED_GSO_TYPE",
    ];
    let prefixes = ["SKB_", "SHARED_", "DEV_", "DST_", "NET_"];
    symbol == "SOCK_NET" || !OTHERS.contains(&symbol) && prefixes.iter().any(|prefix| symbol.starts_with(prefix))
}

#[test]
fn every_field_is_found_on_every_shape_of_kernel() {
    for (name, shape) in [("5.10", K5_10), ("6.1", K6_1), ("6.12", K6_12), ("7.3", K7_3)] {
        let btf = Btf::parse(kernel(&shape)).unwrap();
        for decl in FIELDS.iter().filter(|decl| of_drops(decl.symbol)) {
            assert!(
                resolve_field(&btf, decl).is_ok(),
                "{name}: {:?}",
                resolve_field(&btf, decl)
            );
        }
        let moved = shape.shift * 8;
        assert_eq!(field(&btf, "SKB_DEV"), Ok(Field::at(16)), "{name}");
        assert_eq!(field(&btf, "SKB_SK"), Ok(Field::at(24)), "{name}");
        assert_eq!(field(&btf, "SKB_LEN"), Ok(Field::at(48 + moved)), "{name}");
        assert_eq!(
            field(&btf, "SKB_NETWORK_HEADER"),
            Ok(Field::at(64 + moved + 12)),
            "{name}"
        );
        assert_eq!(field(&btf, "SOCK_NET"), Ok(Field::at(48)), "{name}");
        assert_eq!(field(&btf, "NET_INODE"), Ok(Field::at(24)), "{name}");
        assert_eq!(field(&btf, "NET_COOKIE"), Ok(Field::at(64)), "{name}");
        let pkt_type = Field {
            offset: 64 + moved + 1,
            shift: 5,
            width: 3,
            pad: 0,
        };
        assert_eq!(field(&btf, "SKB_PKT_TYPE"), Ok(pkt_type), "{name}");
    }
}

#[test]
fn arguments_are_numbered_as_this_kernel_has_them() {
    let numbers = |shape: &Shape| {
        let btf = Btf::parse(kernel(shape)).unwrap();
        [
            "KFREE_SKB_SKB",
            "KFREE_SKB_LOCATION",
            "KFREE_SKB_REASON",
            "KFREE_SKB_RX_SK",
        ]
        .map(|name| argument(&btf, name))
    };
    assert_eq!(numbers(&K5_10), [0, 1, NO_ARGUMENT, NO_ARGUMENT]);
    assert_eq!(numbers(&K6_1), [0, 1, 2, NO_ARGUMENT]);
    assert_eq!(numbers(&K6_12), [0, 1, 2, 3]);
    assert_eq!(
        numbers(&K7_3),
        [0, 1, 2, 3],
        "by type, through const, where there are no names"
    );
}

#[test]
fn an_argument_in_another_place_is_found_by_its_name() {
    let w = &mut Writer::new();
    let skb = w.structure(STRUCT, "sk_buff", 8, &[]);
    let (skb, number) = (w.pointer(skb), w.int("int", 4));
    w.tracepoint(
        "kfree_skb",
        &[("flags", number), ("reason", number), ("skb__nullable", skb)],
        true,
    );
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(
        (argument(&btf, "KFREE_SKB_SKB"), argument(&btf, "KFREE_SKB_REASON")),
        (2, 1)
    );
    assert_eq!(argument(&btf, "KFREE_SKB_RX_SK"), NO_ARGUMENT);
}

#[test]
fn a_number_without_a_name_is_found_where_it_is_the_only_one() {
    let w = &mut Writer::new();
    let sock = w.structure(STRUCT, "sock", 8, &[]);
    let (sock, number, vector) = (w.pointer(sock), w.int("int", 4), w.int("unsigned int", 4));
    w.tracepoint("softirq_raise", &[("vec_nr", vector)], false);
    w.tracepoint(
        "inet_sock_set_state",
        &[("sk", sock), ("oldstate", number), ("newstate", number)],
        false,
    );
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(argument(&btf, "SOFTIRQ_RAISE_VECTOR"), 0);
    assert_eq!(argument(&btf, "SET_STATE_SK"), 0);
    let states = ["SET_STATE_OLD", "SET_STATE_NEW"].map(|name| argument(&btf, name));
    assert_eq!(states, [NO_ARGUMENT; 2], "nobody can tell which is which");
}

#[test]
fn a_member_that_changed_its_size_is_absent_and_says_so() {
    let w = &mut Writer::new();
    let wide = w.int("u64", 8);
    w.structure(STRUCT, "sk_buff", 8, &[("len", wide, 0, 0)]);
    let btf = Btf::parse(w.finish()).unwrap();
    let absent = field(&btf, "SKB_LEN").unwrap_err();
    assert_eq!(absent.to_string(), "sk_buff.len has 8 bytes, expected 4");
    assert_eq!(
        field(&btf, "SKB_DEV").unwrap_err().to_string(),
        "sk_buff has no member dev"
    );
}

#[test]
fn a_bit_field_of_old_btf_has_its_width_in_the_integer() {
    let w = &mut Writer::new();
    let (byte, three) = (w.int("u8", 1), w.narrow_int("u8", 1, 3));
    w.structure(
        STRUCT,
        "sk_buff",
        8,
        &[("cloned", byte, 0, 0), ("pkt_type", three, 13, 0)],
    );
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(
        field(&btf, "SKB_PKT_TYPE"),
        Ok(Field {
            offset: 1,
            shift: 5,
            width: 3,
            pad: 0
        })
    );
}

#[test]
fn the_clock_of_a_time_stamp_is_one_bit_or_two_or_not_told() {
    let kernel = |member: Option<(&str, u32)>| {
        let w = &mut Writer::new();
        let byte = w.int("u8", 1);
        let members: Vec<_> = member.map(|(name, width)| (name, byte, 9, width)).into_iter().collect();
        w.structure(STRUCT, "sk_buff", 8, &members);
        field(&Btf::parse(w.finish()).unwrap(), "SKB_TSTAMP_TYPE")
    };
    let at = |width| {
        Ok(Field {
            offset: 1,
            shift: 1,
            width,
            pad: 0,
        })
    };
    assert_eq!(kernel(Some(("tstamp_type", 2))), at(2), "since 6.10");
    assert_eq!(kernel(Some(("mono_delivery_time", 1))), at(1), "since 5.18");
    assert!(kernel(None).is_err());
}

#[test]
fn enumerators_keep_the_running_kernels_numbers() {
    for (shape, number) in [(K6_1, 7), (K6_12, 11), (K7_3, 12)] {
        let btf = Btf::parse(kernel(&shape)).unwrap();
        let (_, reasons) = btf.find(Kind::Enum, "skb_drop_reason").unwrap();
        let found = reasons
            .enumerators()
            .find(|(name, _)| *name == "SKB_DROP_REASON_NETFILTER_DROP");
        assert_eq!(found.map(|(_, value)| value), Some(number));
    }
}

#[test]
fn a_file_cut_off_anywhere_is_refused_or_read_without_harm() {
    let whole = kernel(&K6_12);
    for len in 0..whole.len() {
        // The strings come last: a cut there or before makes the header's promise untrue.
        assert!(
            Btf::parse(whole[..len].to_vec()).is_err(),
            "{len} of {} bytes",
            whole.len()
        );
    }
    assert!(Btf::parse(whole).is_ok());
}

#[test]
fn a_file_with_any_byte_changed_does_no_harm() {
    let whole = kernel(&K6_1);
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut broken = whole.clone();
            broken[at] ^= flip;
            let Ok(btf) = Btf::parse(broken) else { continue };
            for decl in FIELDS {
                let _ = resolve_field(&btf, decl);
            }
            for decl in ARGUMENTS {
                let _ = resolve_argument(&btf, decl);
            }
            for (_, t) in btf.types() {
                let _ = (
                    t.name(),
                    t.members().count(),
                    t.enumerators().count(),
                    t.parameters().count(),
                );
            }
        }
    }
}

#[test]
fn types_that_lead_in_a_circle_come_to_an_end() {
    let w = &mut Writer::new();
    // Type 1 is a typedef of type 2, which is a typedef of type 1.
    w.typedef("a", 2);
    w.typedef("b", 1);
    // A struct that holds itself without a name.
    w.structure(STRUCT, "sk_buff", 8, &[("", 3, 0, 0), ("x", 1, 0, 0)]);
    let btf = Btf::parse(w.finish()).unwrap();
    assert!(btf.strip(1).is_none() && btf.size_of(1).is_none());
    assert!(field(&btf, "SKB_DEV").is_err());
}

#[test]
fn types_that_hold_each_other_many_times_are_searched_once() {
    let w = &mut Writer::new();
    let anonymous = |to: u32| [("", to, 0, 0), ("", to, 8, 0), ("", to, 16, 0)];
    for id in 1..40 {
        let name = if id == 1 { "sk_buff" } else { "" };
        w.structure(STRUCT, name, 8, &anonymous(id + 1));
    }
    let byte = w.int("u8", 1);
    assert_eq!(byte, 40);
    let btf = Btf::parse(w.finish()).unwrap();
    assert!(
        field(&btf, "SKB_DEV").is_err(),
        "after 39 looks, not 3 to the power of 39"
    );
}

#[test]
fn other_byte_order_and_other_files_are_told_apart() {
    let mut other = kernel(&K5_10);
    other.swap(0, 1);
    assert_eq!(Btf::parse(other).err(), Some(BtfError::OtherByteOrder));
    assert_eq!(
        Btf::parse(b"\x7fELF\x02\x01\x01".to_vec()).err(),
        Some(BtfError::NotBtf)
    );
    assert_eq!(Btf::parse(Vec::new()).err(), Some(BtfError::NotBtf));
}

#[test]
fn a_modules_types_go_on_where_the_kernels_end() {
    let kernel = Btf::parse(kernel(&K6_12)).unwrap();
    let w = &mut Writer::new();
    w.enumeration("ovs_drop_reason", &[("OVS_DROP_EXPLICIT", 0x2_0001)]);
    let mut bytes = w.finish();
    // The strings of a module's file are numbered from the end of the kernel's.
    let base = {
        let len = |at: usize| u32::from_ne_bytes(kernel_bytes()[at..at + 4].try_into().unwrap());
        len(20)
    };
    for at in [24, 24 + 12] {
        let offset = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&(offset + base).to_ne_bytes());
    }
    let module = Btf::parse_module(bytes, &kernel).unwrap();
    let (id, reasons) = module.find(Kind::Enum, "ovs_drop_reason").unwrap();
    assert_eq!(id as usize, kernel.len() + 1);
    assert_eq!(
        reasons.enumerators().collect::<Vec<_>>(),
        [("OVS_DROP_EXPLICIT", 0x2_0001)]
    );
}

fn kernel_bytes() -> Vec<u8> {
    kernel(&K6_12)
}

#[test]
fn the_running_kernel_has_all_fields_and_arguments() {
    let path = "/sys/kernel/btf/vmlinux";
    let Ok(bytes) = std::fs::read(path) else {
        println!("SKIPPED: {path} cannot be read");
        return;
    };
    let btf = Btf::parse(bytes).unwrap();
    for decl in FIELDS {
        resolve_field(&btf, decl).unwrap_or_else(|absent| panic!("{absent}"));
    }
    assert_eq!(argument(&btf, "KFREE_SKB_SKB"), 0);
    assert_eq!(argument(&btf, "KFREE_SKB_LOCATION"), 1);
}
