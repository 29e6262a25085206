//! Probe `flow`: packets and bytes of the listed namespaces by address, at tracepoints net:net_dev_start_xmit and
//! net:netif_receive_skb: on all devices, beside whatever other programs hang on them. What was lost of them is in
//! [`losses`].

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, classifier, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TcContext};
use core::ptr::{addr_of, addr_of_mut};
use sonde_ebpf_common::flow::{Count, DeviceKey, Key, LOOK_EVERY, Look, PER_NAMESPACE, direction, family};
use sonde_ebpf_common::lost;

use crate::access::{
    Access, DEV_IFINDEX, Live, Probed, RECEIVE_SKB, SHARED_GSO_SEGS, SHARED_GSO_SIZE, SHARED_GSO_TYPE, SKB_DATA,
    SKB_DATA_LEN, SKB_DEV, SKB_ENCAPSULATION, SKB_END, SKB_INNER_TRANSPORT, SKB_LEN, SKB_MAC_HEADER, START_XMIT_DEV,
    START_XMIT_SKB, Setting, Typed, add, add_own, argument,
};
use crate::per_packet::{Ends, Layer3, TCP};
use crate::place::Place;
use crate::{limit, packet, per_packet, place, ring};

mod losses;

#[map]
static FLOW_COUNTS: PerCpuHashMap<Key, Count> = PerCpuHashMap::with_max_entries(1, 0);

/// Flows of each namespace, by inode; user space corrects it when flows are forgotten.
#[map]
static FLOW_USED: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Names of devices that packets were seen on, for dropped ones that say no more than an index.
#[map]
static FLOW_DEVICES: LruHashMap<DeviceKey, [u64; 2]> = LruHashMap::with_max_entries(1, 0);

/// Devices of which [`on_device`] counts what they receive, written by user space when that is attached there.
#[map]
static FLOW_BY_TC: HashMap<DeviceKey, u32> = HashMap::with_max_entries(1, 0);

#[map]
static FLOW_TURNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// When the collector looked last, CLOCK_MONOTONIC.
#[map]
static FLOW_BEAT: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static FLOW_LOOKS: PerCpuArray<Look> = PerCpuArray::with_max_entries(1, 0);

/// After which time without a look of the collector's it is taken to be gone.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.FLOW_PATIENCE_NS")]
static FLOW_PATIENCE_NS: Live<u64> = Live::new(u64::MAX >> 1);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.FLOW_SAMPLE")]
static FLOW_SAMPLE: Live<u32> = Live::new(1);

/// 1: flows are told apart by port too.
#[used]
#[unsafe(no_mangle)]
static FLOW_PORTS: Setting<u32> = Setting::new(0);

/// 1: there may be some in `FLOW_BY_TC`.
#[used]
#[unsafe(no_mangle)]
static FLOW_TC: Setting<u32> = Setting::new(0);

#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn flow_sent_btf(ctx: BtfTracePointContext) -> i32 {
    sent::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub fn flow_sent_raw(ctx: RawTracePointContext) -> i32 {
    sent::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "netif_receive_skb")]
pub fn flow_received_btf(ctx: BtfTracePointContext) -> i32 {
    received::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub fn flow_received_raw(ctx: RawTracePointContext) -> i32 {
    received::<Probed>(ctx.as_ptr().cast())
}

#[inline(always)]
fn sent<A: Access>(context: *const u64) -> i32 {
    let (Some(skb), Some(device)) = (argument(context, &START_XMIT_SKB), argument(context, &START_XMIT_DEV)) else {
        return 0;
    };
    count::<A>(skb as *const u8, device as *const u8, Way::Sent)
}

#[inline(always)]
fn received<A: Access>(context: *const u64) -> i32 {
    let Some(skb) = argument(context, &RECEIVE_SKB) else {
        return 0;
    };
    let skb = skb as *const u8;
    count::<A>(skb, SKB_DEV.pointer::<A>(skb), Way::Received)
}

#[classifier]
pub fn flow_tcx(ctx: TcContext) -> i32 {
    on_device(&ctx)
}

/// A filter stays when its collector is killed, until the next one comes: then it stands aside.
#[classifier]
pub fn flow_clsact(ctx: TcContext) -> i32 {
    if is_left_behind() { NEXT } else { on_device(&ctx) }
}

/// Whether the collector has not looked for long. Asked of the clock for one packet in [`LOOK_EVERY`].
#[inline(always)]
fn is_left_behind() -> bool {
    let (Some(look), Some(beat)) = (FLOW_LOOKS.get_ptr_mut(0), FLOW_BEAT.get_ptr(0)) else {
        return false;
    };
    unsafe {
        if (*look).left == 0 {
            (*look).left = LOOK_EVERY;
            let now = generated::bpf_ktime_get_ns();
            (*look).gone = u32::from(now > beat.read_volatile() + FLOW_PATIENCE_NS.get());
        }
        (*look).left -= 1;
        if (*look).gone != 0 {
            (*look).passed += 1;
        }
        (*look).gone != 0
    }
}

/// TCX_NEXT, and TC_ACT_UNSPEC of filters.
const NEXT: i32 = -1;

/// On a device, before all other programs there: packets come here too that another program took from a device of the
/// host's and gave to this one.
#[inline(always)]
fn on_device(ctx: &TcContext) -> i32 {
    // The context is the kernel's packet; as a number, as its members are not those that the verifier has for it.
    let context = ctx.as_ptr();
    let skb: u64 = unsafe { Probed::load(addr_of!(context).cast()) };
    let skb = skb as *const u8;
    count::<Probed>(skb, SKB_DEV.pointer::<Probed>(skb), Way::ByTc);
    NEXT
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Sent,
    /// As the tracepoint has it: its link-layer header was cut off already.
    Received,
    /// With its link-layer header.
    ByTc,
}

#[inline(always)]
fn count<A: Access>(skb: *const u8, device: *const u8, way: Way) -> i32 {
    if way != Way::Sent && FLOW_TC.get() != 0 && is_by_tc::<A>(device) != (way == Way::ByTc) {
        return 0;
    }
    let sample = FLOW_SAMPLE.get();
    if !per_packet::is_its_turn(&FLOW_TURNS, sample) {
        return 0;
    }
    let place = place::of_device::<A>(device);
    if !limit::is_listed(&place) {
        return 0;
    }
    let head = packet::head::<A>(skb);
    let data = || SKB_DATA.read::<A>(skb).unwrap_or(0).wrapping_sub(head as u64) as u32;
    let mut bytes = SKB_LEN.read::<A>(skb).unwrap_or(0);
    let (layer3, link) = if way == Way::Received {
        let data = data();
        let link = match SKB_MAC_HEADER.read::<A>(skb) {
            Some(mac) if (mac as u32) < data => mac as u32,
            _ => data,
        };
        bytes += data - link;
        (per_packet::received::<A>(skb, head), Some(link))
    } else {
        (per_packet::sent::<A>(skb, head), None)
    };
    let direction = match way {
        Way::Sent => direction::EGRESS,
        _ => direction::INGRESS,
    };
    let ends = per_packet::ends::<A>(layer3);
    let (mut packets, mut all_bytes) = (1, bytes as u64);
    let mut pages = SKB_DATA_LEN.read::<A>(skb) != Some(0);
    pages |= bytes > 1514;
    if pages {
        let link = link.unwrap_or_else(data);
        let segments = Segments::read::<A>(skb, head, &layer3, &ends, link, bytes);
        packets = segments.count as u64;
        all_bytes += (segments.count - 1) as u64 * segments.headers as u64;
    }
    if sample > 1 {
        packets *= sample as u64;
        all_bytes *= sample as u64;
    }
    let mut key = key(&place, per_packet::name::<A>(device), direction, &ends);
    if let Some(counter) = FLOW_COUNTS.get_ptr_mut(&key) {
        unsafe {
            add_own::<A>(addr_of_mut!((*counter).packets), packets);
            add_own::<A>(addr_of_mut!((*counter).bytes), all_bytes);
        }
        return 0;
    }
    // A new flow, or one for which there was no room before.
    let known = DeviceKey {
        cookie: key.cookie,
        netns: key.netns,
        ifindex: DEV_IFINDEX.read::<A>(device).unwrap_or(0),
    };
    // Without it, such a drop tells no device.
    let _ = FLOW_DEVICES.insert(&known, &key.device, BPF_ANY as u64);
    let one = Count {
        packets,
        bytes: all_bytes,
        drops: 0,
        retransmits: 0,
    };
    if !make(&mut key, &one) {
        ring::uncounted(lost::FLOW);
    }
    0
}

/// Whether what the device receives is counted by [`on_device`], and not at the tracepoint.
#[inline(always)]
fn is_by_tc<A: Access>(device: *const u8) -> bool {
    let place = place::of_device::<A>(device);
    let key = DeviceKey {
        cookie: place.cookie,
        netns: place.netns,
        ifindex: DEV_IFINDEX.read::<A>(device).unwrap_or(0),
    };
    unsafe { FLOW_BY_TC.get(&key) }.is_some()
}

#[inline(always)]
fn key(place: &Place, device: [u64; 2], direction: u8, ends: &Ends) -> Key {
    let with_ports = FLOW_PORTS.get() != 0;
    Key {
        cookie: place.cookie,
        netns: place.netns,
        sport: if with_ports { ends.sport } else { 0 },
        dport: if with_ports { ends.dport } else { 0 },
        saddr: ends.saddr,
        daddr: ends.daddr,
        device,
        protocol: ends.protocol,
        family: ends.family,
        direction,
        pad: 0,
        pad_word: 0,
    }
}

#[inline(always)]
fn add_to(key: &Key, one: &Count) -> bool {
    let Some(counter) = FLOW_COUNTS.get_ptr_mut(key) else {
        return false;
    };
    unsafe {
        for (counter, by) in [
            (addr_of_mut!((*counter).packets), one.packets),
            (addr_of_mut!((*counter).bytes), one.bytes),
            (addr_of_mut!((*counter).drops), one.drops),
            (addr_of_mut!((*counter).retransmits), one.retransmits),
        ] {
            if by != 0 {
                add(counter, by);
            }
        }
    }
    true
}

/// Makes a new flow of it, or counts it with those for which there is no room: then that is the key.
#[inline(always)]
fn make(key: &mut Key, one: &Count) -> bool {
    let used = match FLOW_USED.get_ptr_mut(key.netns) {
        Some(used) => Some(used),
        None => {
            // On the stack: a constant may share its place with one that user space sets before loading.
            let none = 0u64;
            let _ = FLOW_USED.insert(key.netns, core::hint::black_box(&none), BPF_NOEXIST as u64);
            FLOW_USED.get_ptr_mut(key.netns)
        }
    };
    let Some(used) = used else { return false };
    if unsafe { *used } < PER_NAMESPACE {
        if FLOW_COUNTS.insert(&*key, one, BPF_NOEXIST as u64).is_ok() {
            add(used, 1);
            return true;
        }
        // Full, or another CPU was first.
        if add_to(key, one) {
            return true;
        }
    }
    key.family = family::REST;
    key.sport = 0;
    key.dport = 0;
    key.saddr = [0; 4];
    key.daddr = [0; 4];
    add_to(key, one) || FLOW_COUNTS.insert(&*key, one, BPF_NOEXIST as u64).is_ok() || add_to(key, one)
}

/// What a large buffer becomes on the wire.
struct Segments {
    count: u32,
    /// Bytes of headers that each of them has.
    headers: u32,
}

impl Segments {
    #[inline(always)]
    fn read<A: Access>(skb: *const u8, head: *const u8, layer3: &Layer3, ends: &Ends, link: u32, bytes: u32) -> Self {
        const TCP_TYPES: u32 = 1 | 1 << 4;
        const UDP_HEADER: u32 = 8;
        let mut segments = Self { count: 1, headers: 0 };
        let Some(end) = SKB_END.read::<A>(skb) else {
            return segments;
        };
        let shared = head.wrapping_add(end as usize);
        let size = SHARED_GSO_SIZE.read::<Probed>(shared).unwrap_or(0) as u32;
        if size == 0 {
            return segments;
        }
        let (transport, is_tcp) = if SKB_ENCAPSULATION.bits::<A>(skb).unwrap_or(0) != 0 {
            let kind = SHARED_GSO_TYPE.read::<Probed>(shared).unwrap_or(0);
            let inner = SKB_INNER_TRANSPORT.read::<A>(skb).unwrap_or(0);
            (inner as u32, kind & TCP_TYPES != 0)
        } else if ends.transport != 0 {
            (layer3.offset + ends.transport, ends.protocol == TCP)
        } else {
            (0, false)
        };
        if transport > link {
            let own = if is_tcp {
                match packet::read::<1>(head.wrapping_add(transport as usize + 12)) {
                    Some([length]) => (length >> 4) as u32 * 4,
                    None => 20,
                }
            } else {
                UDP_HEADER
            };
            segments.headers = transport - link + own;
        }
        let told = SHARED_GSO_SEGS.read::<Probed>(shared).unwrap_or(0) as u32;
        if told > 1 {
            segments.count = told;
        } else if bytes > segments.headers {
            // A guest's packet is not always counted before it is cut up.
            segments.count = (bytes - segments.headers).div_ceil(size);
        }
        if segments.count == 0 {
            segments.count = 1;
        }
        segments
    }
}
