//! What all maps take, reckoned from their sizes for machines that are not here, and compared with the kernel's own word on
//! this one.

use aya_obj::generated::bpf_map_type;

use super::*;

/// For the configuration as it comes, on machines of so many CPUs.
const MOST: u64 = 32 << 20;
const CPUS: usize = 32;
/// On larger ones a value for each CPU is what takes it: no more than this for one more.
const FOR_A_CPU: u64 = 256 << 10;

/// As the kernel has it (kernel/bpf/hashtab.c, arraymap.c, ringbuf.c).
fn reckoned(config: &Config, cpus: usize) -> u64 {
    let facts = super::super::facts::gather(config).0;
    let wanted: Vec<_> = probes::ALL
        .iter()
        .copied()
        .filter(|probe| probe.settings(config).enabled)
        .collect();
    let settings = Settings::new(config, &facts, &wanted, cpus);
    let is_off = |name: &str| {
        probes::ALL.iter().any(|probe| {
            let is_its = probe.maps.iter().any(|(map, _)| *map == name);
            is_its && !wanted.iter().any(|wanted| wanted.spec.name == probe.spec.name)
        })
    };
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let of_map = |(name, map): (&String, &aya_obj::Map)| {
        if is_off(name) {
            return 0;
        }
        let set = settings.maps.iter().find(|(of, _)| of == name);
        let entries = u64::from(set.map_or(map.max_entries(), |(_, entries)| *entries));
        let word = |bytes: u32| u64::from(bytes).next_multiple_of(8);
        let (key, value) = (word(map.key_size()), word(map.value_size()));
        // Of an element: its links, and of a bucket.
        let element = 48 + key;
        let buckets = 16 * entries.next_power_of_two();
        let cpus = cpus as u64;
        match map.map_type() {
            kind if kind == bpf_map_type::BPF_MAP_TYPE_HASH as u32 => (entries + cpus) * (element + value) + buckets,
            kind if kind == bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32 => entries * (element + value) + buckets,
            kind if kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH as u32 => {
                entries * (element + 8 + value * cpus) + buckets
            }
            kind if kind == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 => entries * value,
            kind if kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32 => entries * (8 + value * cpus),
            kind if kind == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 => entries,
            other => panic!("{name}: a map of type {other}"),
        }
    };
    object.maps.iter().map(of_map).sum()
}

#[test]
fn the_maps_of_the_configuration_as_it_comes_take_32_mib_at_most_on_a_machine_of_32_cpus() {
    for cpus in [1, 2, 3, 4, 8, 16, 17, 24, CPUS, 48, 64, 65, 96, 128] {
        let bytes = reckoned(&Config::default(), cpus);
        println!("{cpus} CPUs: {:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let most = MOST + cpus.saturating_sub(CPUS) as u64 * FOR_A_CPU;
        assert!(bytes <= most, "{cpus} CPUs: {bytes}");
    }
}

/// Also that the reckoning is right: it is close to what the kernel says.
#[test]
fn the_kernel_says_the_same_of_the_maps_that_are_here() {
    let mut config = Config::default();
    // Its functions are not to be had everywhere.
    config.probes.entry("virtcmdlatency".into()).or_default().enabled = Some(false);
    let (sender, _events) = tokio::sync::mpsc::channel(16);
    let index = std::sync::Arc::<crate::pods::PodIndex>::default();
    let (kernel, signals) = super::super::Kernel::start(&config, index, sender);
    // Where a probe does not run its maps go, so all must.
    if let Some(off) = signals.iter().find(|signal| signal.rung.is_none() && !signal.chosen) {
        println!("SKIPPED: {}: {}", off.name, off.reason);
        return;
    }
    let told = kernel.status().map_bytes;
    let reckoned = reckoned(&config, aya::util::nr_cpus().unwrap());
    println!("told: {told}, reckoned: {reckoned}");
    assert!(told <= MOST, "{told}");
    assert!(
        told.abs_diff(reckoned) < told / 10,
        "told: {told}, reckoned: {reckoned}"
    );
}
