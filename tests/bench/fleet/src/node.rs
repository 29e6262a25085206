//! One simulated node: a body that stands ready, of which each reading changes the few numbers that move.

use std::sync::Arc;

use sonde_collector::probes::Whose;
use sonde_proto::v1::{Batch, BatchBody, Column, Event, Hello, Pod, Rows, Stack};

use crate::mix::{Mix, Moves};

/// What a node looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub pods: usize,
    /// Share of pods whose numbers move.
    pub busy: f64,
    /// Share of pods that end with each reading, and are followed by new ones.
    pub churn: f64,
    /// Share of pods whose counters begin anew with each reading, as when a device is made again.
    pub resets: f64,
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            pods: 50,
            busy: 0.1,
            // A pod lives for some hours when there is a reading every five seconds.
            churn: 0.0003,
            resets: 0.0001,
            seed: 1,
        }
    }
}

/// A number that moves with every reading.
#[derive(Clone, Copy, Debug)]
struct Mover {
    rows: u16,
    column: u16,
    /// Where its value, or the first of its values, is in the column.
    at: u32,
    moves: Moves,
    /// How much more than a busy pod's.
    factor: i64,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    mix: Arc<Mix>,
    shape: Shape,
    rng: fastrand::Rng,
    boot: [u8; 16],
    epoch: [u8; 16],
    sequence: u64,
    /// The next reading, but for what changes. `pods` are the live ones, by slot.
    reading: BatchBody,
    /// By entry of `reading.rows`: which probe of the mix.
    of_rows: Vec<usize>,
    movers: Vec<Mover>,
    seldom: Vec<Mover>,
    /// How many pods there were.
    born: u64,
    flood: BatchBody,
}

impl Node {
    pub fn new(number: usize, mix: Arc<Mix>, shape: Shape, now_ns: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(shape.seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut id = || rng.u128(..).to_le_bytes();
        let (boot, epoch) = (id(), id());
        let mut node = Self {
            name: format!("node-{number:05}"),
            mix,
            shape,
            rng,
            boot,
            epoch,
            sequence: 0,
            reading: BatchBody {
                strings: vec![String::new()],
                ..BatchBody::default()
            },
            of_rows: Vec::new(),
            movers: Vec::new(),
            seldom: Vec::new(),
            born: 0,
            flood: BatchBody::default(),
        };
        for slot in 0..shape.pods {
            let pod = node.new_pod(slot, now_ns);
            node.reading.pods.push(pod);
        }
        node.lay_out();
        node.flood = node.flood_template();
        node
    }

    /// `interval_ns`: how often it says that it reads.
    pub fn hello(&self, interval_ns: u64) -> Hello {
        Hello {
            node: self.name.clone(),
            boot_id: self.boot.to_vec(),
            epoch: self.epoch.to_vec(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: "6.18.0-simulated".into(),
            interval_ns,
            catalogue: Some(self.mix.catalogue()),
        }
    }

    /// Values of a reading: a histogram is one.
    pub fn samples(&self) -> u64 {
        let of = |(rows, probe): (&Rows, &usize)| rows.subjects.len() * self.mix.probes[*probe].spec.columns.len();
        self.reading.rows.iter().zip(&self.of_rows).map(of).sum::<usize>() as u64
    }

    /// Numbers of a reading: each bucket of a histogram is one.
    pub fn numbers(&self) -> u64 {
        let columns = self.reading.rows.iter().flat_map(|rows| &rows.columns);
        columns.map(|column| column.values.len() as u64).sum()
    }

    /// Namespace and name of the pods that are there.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reading
            .pods
            .iter()
            .map(|pod| (pod.namespace.as_str(), pod.name.as_str()))
    }

    /// The next reading, as it travels.
    pub fn reading(&mut self, time_ns: u64) -> Batch {
        let ended = self.live(time_ns);
        for at in 0..self.movers.len() {
            self.step(self.movers[at]);
        }
        // A hundredth of what moves seldom.
        for _ in 0..self.seldom.len().div_ceil(100) {
            let one = self.seldom[self.rng.usize(..self.seldom.len())];
            self.step(one);
        }
        for rows in &mut self.reading.rows {
            rows.time_ns = time_ns;
        }
        let live = self.reading.pods.len();
        self.reading.pods.extend(ended);
        let body = sonde_proto::body::encode(&self.reading);
        self.reading.pods.truncate(live);
        self.batch(body)
    }

    /// `count` drops, one microsecond after the other, with addresses, ports and a stack.
    pub fn events(&mut self, count: usize, time_ns: u64) -> Batch {
        let (round, pods) = (self.sequence, self.reading.pods.len() as u32);
        self.flood.events.resize_with(count, Event::default);
        for (i, event) in self.flood.events.iter_mut().enumerate() {
            let i = i as u32;
            *event = Event {
                time_ns: time_ns + u64::from(i) * 1000,
                // Pod 0 where the node has none.
                subject: if pods == 0 { 0 } else { i % pods.min(FLOODED) + 1 },
                probe: 1,
                r#type: 2,
                reason: 3 + (i / 16) % 2,
                protocol: 5,
                saddr: vec![10, 0, (i >> 8) as u8, i as u8],
                sport: 30_000 + i % 30_000,
                daddr: vec![10, 1, 0, (round % 250) as u8],
                dport: 443,
                direction: 1,
                cpu: Some(i % 4),
                interface: 6,
                stack: 1,
                ..Event::default()
            };
        }
        let body = sonde_proto::body::encode(&self.flood);
        self.batch(body)
    }

    fn batch(&mut self, body: Vec<u8>) -> Batch {
        self.sequence += 1;
        Batch {
            sequence: self.sequence,
            body: body.into(),
        }
    }

    /// Pods come and go, counters begin anew. Returns those that ended.
    fn live(&mut self, now_ns: u64) -> Vec<Pod> {
        let mut ended = Vec::new();
        for slot in 0..self.reading.pods.len() {
            let dice = self.rng.f64();
            if dice < self.shape.churn {
                let new = self.new_pod(slot, now_ns);
                let mut old = std::mem::replace(&mut self.reading.pods[slot], new);
                old.valid_to_ns = now_ns.max(old.valid_from_ns);
                ended.push(old);
                if let Some(flooded) = self.flood.pods.get_mut(slot) {
                    flooded.clone_from(&self.reading.pods[slot]);
                }
            }
            if dice < self.shape.churn + self.shape.resets {
                self.begin_anew(slot);
            }
        }
        ended
    }

    fn begin_anew(&mut self, slot: usize) {
        for (rows, probe) in self.reading.rows.iter_mut().zip(&self.of_rows) {
            let probe = &self.mix.probes[*probe];
            let each = probe.label_sets.len();
            let first = match probe.whose {
                Whose::NodeAndPods => slot + 1,
                Whose::Pods => slot,
                Whose::Node => continue,
            };
            for (column, spec) in rows.columns.iter_mut().zip(probe.spec.columns) {
                let width = spec.width() * each;
                column.values[first * width..(first + 1) * width].fill(0);
            }
        }
    }

    fn step(&mut self, mover: Mover) {
        let values = &mut self.reading.rows[usize::from(mover.rows)].columns[usize::from(mover.column)].values;
        let at = mover.at as usize;
        match mover.moves {
            Moves::Grows(about) => values[at] += self.rng.i64(0..about * 2) * mover.factor,
            Moves::Wanders => values[at] = (values[at] + self.rng.i64(-3..=3)).max(0),
            Moves::Seldom => values[at] += 1,
            Moves::Fills => {
                // Most times are about the same: three buckets of all, and the sum behind the last one.
                let width = self.mix.probes[self.of_rows[usize::from(mover.rows)]].spec.columns
                    [usize::from(mover.column)]
                .width();
                let middle = (width - 1) / 3;
                let mut sum = 0;
                for bucket in middle..(middle + 3).min(width - 1) {
                    let more = self.rng.i64(0..8) * mover.factor;
                    values[at + bucket] += more;
                    sum += (more * 1000) << bucket.min(20);
                }
                values[at + width - 1] += sum;
            }
        }
    }

    fn new_pod(&mut self, slot: usize, now_ns: u64) -> Pod {
        self.born += 1;
        let born = self.born;
        let workload = format!("workload-{}", (slot * 7) % 50);
        Pod {
            sandbox: format!("{}-{born:08}", self.name),
            uid: format!("{:032x}", self.rng.u128(..)),
            namespace: format!("team-{}", slot % 20),
            name: format!("{workload}-{:010x}-{}", self.rng.u64(..) >> 24, &self.name[5..]),
            workload_kind: "Deployment".into(),
            ips: vec![vec![10, 128, (born >> 8) as u8, born as u8]],
            labels: [("app".into(), workload.clone()), ("version".into(), "v1".into())].into(),
            workload,
            netns_inode: 4_026_532_000 + born,
            netns_cookie: 10_000 + born,
            valid_from_ns: now_ns,
            ..Pod::default()
        }
    }

    /// Makes all rows, with the numbers that they begin with.
    fn lay_out(&mut self) {
        let mix = Arc::clone(&self.mix);
        let pods = self.shape.pods;
        let busy: Vec<bool> = (0..pods).map(|_| self.rng.f64() < self.shape.busy).collect();
        for (number, probe) in mix.probes.iter().enumerate().filter(|(_, probe)| probe.rows(pods) > 0) {
            let each = probe.label_sets.len();
            let subjects: Vec<u32> = match probe.whose {
                Whose::NodeAndPods => (0..=pods as u32).collect(),
                Whose::Node => vec![0],
                Whose::Pods => (1..=pods as u32).collect(),
            };
            let labels: Vec<u32> = probe
                .label_sets
                .concat()
                .into_iter()
                .map(|text| self.string(text))
                .collect();
            let rows = self.of_rows.len() as u16;
            let mut columns: Vec<Column> = vec![Column::default(); probe.spec.columns.len()];
            for (row, subject) in subjects.iter().flat_map(|s| std::iter::repeat_n(*s, each)).enumerate() {
                // The first of several rows is the quiet one: lo beside eth0.
                let loud = row % each == each - 1;
                let factor = match subject {
                    0 if loud => 20,
                    0 => 1,
                    pod if loud && busy[pod as usize - 1] => 1,
                    _ => 0,
                };
                for (at, column) in columns.iter_mut().enumerate() {
                    let width = probe.spec.columns[at].width();
                    let mover = Mover {
                        rows,
                        column: at as u16,
                        at: column.values.len() as u32,
                        moves: probe.moves[at],
                        factor,
                    };
                    let used = factor > 0 || self.rng.u8(..) < 96;
                    let mut first = |_| {
                        if used {
                            self.rng.i64(0..100_000) * factor.max(1)
                        } else {
                            0
                        }
                    };
                    column.values.extend((0..width).map(&mut first));
                    match mover.moves {
                        Moves::Seldom if factor > 0 => self.seldom.push(mover),
                        // Not every gauge of a busy subject moves, nor does every counter of traffic.
                        _ if factor > 0 && self.rng.u8(..) < 170 => self.movers.push(mover),
                        _ => {}
                    }
                }
            }
            self.of_rows.push(number);
            self.reading.rows.push(Rows {
                probe: probe.spec.name.into(),
                time_ns: 0,
                labels: labels.repeat(subjects.len()),
                subjects: subjects
                    .into_iter()
                    .flat_map(|s| std::iter::repeat_n(s, each))
                    .collect(),
                columns,
            });
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        let strings = &mut self.reading.strings;
        let at = strings.iter().position(|known| known == text).unwrap_or_else(|| {
            strings.push(text.to_owned());
            strings.len() - 1
        });
        at as u32
    }

    fn flood_template(&self) -> BatchBody {
        let strings = [
            "",
            "packetloss",
            "PACKETLOSS",
            "NETFILTER_DROP",
            "NO_SOCKET",
            "TCP",
            "eth0",
            "nft_do_chain+0x4f1",
            "nf_hook_slow+0x42",
            "ip_local_deliver+0xd0",
            "ip_rcv+0x1a2",
        ];
        BatchBody {
            strings: strings.map(String::from).to_vec(),
            stacks: vec![Stack {
                frames: vec![7, 8, 9, 10],
            }],
            pods: self.reading.pods.iter().take(FLOODED as usize).cloned().collect(),
            ..BatchBody::default()
        }
    }
}

/// Pods whose events a flood is made of.
const FLOODED: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000_000_000;

    fn node(shape: Shape) -> Node {
        Node::new(7, Arc::new(Mix::real()), shape, NOW)
    }

    fn decode(batch: &Batch) -> BatchBody {
        sonde_proto::body::decode(&batch.body).unwrap()
    }

    fn values(body: &BatchBody) -> Vec<i64> {
        let columns = body.rows.iter().flat_map(|rows| &rows.columns);
        columns.flat_map(|column| column.values.iter().copied()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_batches_and_another_does_not() {
        let shape = Shape {
            churn: 0.05,
            ..Shape::default()
        };
        let (mut a, mut b) = (node(shape), node(shape));
        let mut c = node(Shape { seed: 2, ..shape });
        for reading in 1..20 {
            let (a, b) = (a.reading(NOW + reading), b.reading(NOW + reading));
            // Labels of pods are a map, which has no order on the wire.
            assert_eq!(decode(&a), decode(&b));
            assert_eq!(a.sequence, reading);
            assert_ne!(decode(&a), decode(&c.reading(NOW + reading)));
        }
    }

    #[test]
    fn most_numbers_stand_still_and_those_of_the_node_move_most() {
        let mut node = node(Shape {
            churn: 0.0,
            resets: 0.0,
            ..Shape::default()
        });
        let before = decode(&node.reading(NOW));
        let after = decode(&node.reading(NOW + 1));
        let (b, a) = (values(&before), values(&after));
        assert_eq!(a.len() as u64, node.numbers());
        let moved = b.iter().zip(&a).filter(|(b, a)| b != a).count();
        let share = moved as f64 / a.len() as f64;
        assert!((0.01..0.15).contains(&share), "{share} of all numbers moved");
        let netdev = |body: &BatchBody| {
            body.rows.iter().find(|rows| rows.probe == "netdev").unwrap().columns[0]
                .values
                .clone()
        };
        let growth: Vec<i64> = netdev(&after).iter().zip(netdev(&before)).map(|(a, b)| a - b).collect();
        // lo and eth0 of the node come first.
        assert!(growth[1] >= *growth[2..].iter().max().unwrap(), "{growth:?}");
    }

    #[test]
    fn pods_come_and_go_and_their_counters_begin_anew() {
        let mut node = node(Shape {
            churn: 0.2,
            ..Shape::default()
        });
        let first = decode(&node.reading(NOW));
        let second = decode(&node.reading(NOW + 5));
        let ended: Vec<&Pod> = second.pods.iter().filter(|pod| pod.valid_to_ns != 0).collect();
        assert!(!ended.is_empty());
        assert_eq!(second.pods.len(), 50 + ended.len(), "the ended are told once");
        for pod in &ended {
            assert!(first.pods.iter().any(|before| before.sandbox == pod.sandbox));
            assert_eq!(pod.valid_to_ns, NOW + 5);
        }
        let mut sandboxes: Vec<&str> = second.pods.iter().map(|pod| pod.sandbox.as_str()).collect();
        sandboxes.sort_unstable();
        sandboxes.dedup();
        assert_eq!(sandboxes.len(), second.pods.len());
        let fell = values(&first)
            .iter()
            .zip(values(&second))
            .filter(|(b, a)| a < *b)
            .count();
        assert!(fell > 0, "no counter began anew");
    }

    #[test]
    fn a_flood_tells_apart_each_event() {
        let mut node = node(Shape::default());
        let body = decode(&node.events(1000, NOW));
        let mut ports: Vec<_> = body.events.iter().map(|e| (e.time_ns, &e.saddr, e.sport)).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 1000);
        assert!(
            body.events
                .iter()
                .all(|e| e.subject >= 1 && e.subject as usize <= body.pods.len())
        );
    }
}
