//! The history of network namespaces, addresses and host-side interfaces of this node.
//!
//! Written by the sources of pods when something changes, asked for every event. What has ended stays for
//! [`HISTORY_NS`], so that an event that comes late still finds its pod.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::Pod;
use crate::event::{NetnsKey, Subject};

/// How long what has ended can still be asked for.
const HISTORY_NS: u64 = 600 * 1_000_000_000;
/// An event may bear a time a little after the end of its pod: the end is when we saw it, and clocks differ.
const LATE_NS: u64 = 2 * 1_000_000_000;

#[derive(Debug, Default)]
pub struct PodIndex {
    inner: RwLock<Inner>,
    /// Counts changes.
    generation: watch::Sender<u64>,
    /// Counts pods that ended.
    ended: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    node: Option<NetnsKey>,
    /// Pods by inode, oldest first.
    by_inode: HashMap<u32, Vec<Arc<Pod>>>,
    by_ip: HashMap<IpAddr, Vec<Tenure>>,
    by_host_ifindex: HashMap<u32, Vec<Tenure>>,
    live: Vec<Arc<Pod>>,
    /// Of pods that are there now, by sandbox, and of the node under "".
    facts: HashMap<String, Facts>,
    /// Named network namespaces that the configuration leaves out.
    excluded: Vec<u32>,
}

/// What changes during the life of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub addresses: Vec<IpAddr>,
    pub host_ifindexes: Vec<u32>,
}

/// Who had an address or an interface, and when.
#[derive(Clone, Debug)]
struct Tenure {
    owner: Subject,
    from_ns: u64,
    /// 0 = still.
    to_ns: u64,
}

impl PodIndex {
    /// An index that knows the node's own namespace.
    pub fn new(node: NetnsKey) -> Self {
        let index = Self::default();
        index.inner.write().node = Some(node);
        index
    }

    /// Whose network namespace this was at `at_ns` (Unix time). `Subject::Unknown` when it is none we know: ask again
    /// later, the pod may not have been found yet.
    pub fn by_netns(&self, key: NetnsKey, at_ns: u64) -> Subject {
        let inner = self.inner.read();
        if inner.node.is_some_and(|node| node.inode == key.inode) {
            return Subject::Node;
        }
        let Some(pods) = inner.by_inode.get(&key.inode) else {
            return Subject::Unknown;
        };
        holder(pods, key.cookie, at_ns).map_or(Subject::Unknown, |pod| Subject::Pod(Arc::clone(pod)))
    }

    /// The pod of this node that had the address at that time; `None` also when several had it.
    pub fn by_ip(&self, ip: IpAddr, at_ns: u64) -> Option<Subject> {
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        only(self.inner.read().by_ip.get(&ip)?, at_ns)
    }

    /// The pod behind a device of the host's namespace (veth pair) at that time.
    pub fn by_host_ifindex(&self, ifindex: u32, at_ns: u64) -> Option<Subject> {
        only(self.inner.read().by_host_ifindex.get(&ifindex)?, at_ns)
    }

    /// Pods that are there now.
    pub fn live(&self) -> Vec<Arc<Pod>> {
        self.inner.read().live.clone()
    }

    /// Addresses that a live pod has now; those it was found with when it has ended.
    pub fn addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        let inner = self.inner.read();
        inner
            .facts
            .get(&pod.sandbox)
            .map_or_else(|| pod.ips.clone(), |facts| facts.addresses.clone())
    }

    /// The node's own network namespace.
    pub fn node(&self) -> Option<NetnsKey> {
        self.inner.read().node
    }

    /// Whether the configuration leaves this namespace out.
    pub fn is_excluded(&self, key: NetnsKey) -> bool {
        self.inner.read().excluded.contains(&key.inode)
    }

    /// Wakes at each change: ask again then about what was unknown.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// How many pods have ended so far.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn add(&self, pod: Arc<Pod>) {
        let mut inner = self.inner.write();
        // Events of the node's namespace are the node's: which of its pods they are of cannot be told.
        if !pod.host_network {
            let same = inner.by_inode.entry(pod.netns.inode).or_default();
            same.push(Arc::clone(&pod));
        }
        inner.live.push(pod);
        drop(inner);
        self.changed();
    }

    pub(crate) fn end(&self, pod: &Arc<Pod>, now_ns: u64) {
        self.set_facts(Some(pod), Facts::default(), now_ns);
        pod.valid_to_ns.store(now_ns, Ordering::Release);
        self.ended.fetch_add(1, Ordering::Release);
        let mut inner = self.inner.write();
        inner.facts.remove(&pod.sandbox);
        inner.live.retain(|other| other.sandbox != pod.sandbox);
        drop(inner);
        self.changed();
    }

    pub(crate) fn exclude(&self, inodes: Vec<u32>) {
        let mut inner = self.inner.write();
        if inner.excluded != inodes {
            inner.excluded = inodes;
            drop(inner);
            self.changed();
        }
    }

    /// What a pod, or with `None` the node, has from now on.
    pub(crate) fn set_facts(&self, pod: Option<&Arc<Pod>>, facts: Facts, now_ns: u64) {
        let owner = pod.map_or(Subject::Node, |pod| Subject::Pod(Arc::clone(pod)));
        let sandbox = pod.map_or("", |pod| pod.sandbox.as_str());
        let mut inner = self.inner.write();
        let old = inner.facts.get(sandbox).cloned().unwrap_or_default();
        if old == facts {
            return;
        }
        replace(&mut inner.by_ip, &owner, &old.addresses, &facts.addresses, now_ns);
        replace(
            &mut inner.by_host_ifindex,
            &owner,
            &old.host_ifindexes,
            &facts.host_ifindexes,
            now_ns,
        );
        inner.facts.insert(sandbox.to_owned(), facts);
        drop(inner);
        self.changed();
    }

    /// Forgets what ended longer than [`HISTORY_NS`] ago.
    pub(crate) fn forget(&self, now_ns: u64) {
        let horizon = now_ns.saturating_sub(HISTORY_NS);
        let gone = |to_ns: u64| to_ns != 0 && to_ns < horizon;
        let mut inner = self.inner.write();
        inner.by_inode.retain(|_, pods| {
            pods.retain(|pod| !gone(pod.valid_to_ns.load(Ordering::Acquire)));
            !pods.is_empty()
        });
        let keep = |tenures: &mut Vec<Tenure>| {
            tenures.retain(|tenure| !gone(tenure.to_ns));
            !tenures.is_empty()
        };
        inner.by_ip.retain(|_, tenures| keep(tenures));
        inner.by_host_ifindex.retain(|_, tenures| keep(tenures));
    }
}

/// Of the pods that had an inode one after another, the one meant. A cookie is never used twice, so it decides alone
/// where both sides have one. Else time does: from the end of the one before, since a namespace exists before
/// it is found, to the end, and a little longer while nobody else has the inode.
fn holder(pods: &[Arc<Pod>], cookie: u64, at_ns: u64) -> Option<&Arc<Pod>> {
    if cookie != 0 {
        if let Some(pod) = pods.iter().find(|pod| pod.netns.cookie == cookie) {
            return Some(pod);
        }
        if pods.iter().all(|pod| pod.netns.cookie != 0) {
            return None;
        }
    }
    let mut from_ns = 0;
    for (i, pod) in pods.iter().enumerate() {
        let to_ns = pod.valid_to_ns.load(Ordering::Acquire);
        let until = match (to_ns, pods.get(i + 1)) {
            (0, _) => u64::MAX,
            (to_ns, Some(next)) => to_ns.saturating_add(LATE_NS).min(next.valid_from_ns),
            (to_ns, None) => to_ns.saturating_add(LATE_NS),
        };
        let excluded = cookie != 0 && pod.netns.cookie != 0;
        if (from_ns..until).contains(&at_ns) && !excluded {
            return Some(pod);
        }
        from_ns = until;
    }
    None
}

/// The owner at that time, if it was one. What nobody had then may have been given a moment before it was found.
fn only(tenures: &[Tenure], at_ns: u64) -> Option<Subject> {
    let open = |tenure: &&Tenure| tenure.to_ns == 0 || at_ns < tenure.to_ns;
    let one = |late_ns: u64| {
        let mut owners = tenures
            .iter()
            .filter(|t| t.from_ns <= at_ns.saturating_add(late_ns))
            .filter(open);
        let first = &owners.next()?.owner;
        Some(owners.all(|other| other.owner == *first).then(|| first.clone()))
    };
    one(0).or_else(|| one(LATE_NS)).flatten()
}

fn replace<K: Copy + Eq + std::hash::Hash>(
    map: &mut HashMap<K, Vec<Tenure>>,
    owner: &Subject,
    old: &[K],
    new: &[K],
    now_ns: u64,
) {
    for key in old.iter().filter(|key| !new.contains(key)) {
        for tenure in map.get_mut(key).into_iter().flatten() {
            if tenure.owner == *owner && tenure.to_ns == 0 {
                tenure.to_ns = now_ns;
            }
        }
    }
    for key in new.iter().filter(|key| !old.contains(key)) {
        map.entry(*key).or_default().push(Tenure {
            owner: owner.clone(),
            from_ns: now_ns,
            to_ns: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn pod(name: &str, inode: u32, cookie: u64, from_ns: u64) -> Arc<Pod> {
        Arc::new(Pod {
            sandbox: format!("netns/{name}/{cookie}@{from_ns}"),
            namespace: "t".into(),
            name: name.into(),
            netns: NetnsKey { inode, cookie },
            valid_from_ns: from_ns,
            ..Pod::default()
        })
    }

    fn name(subject: Subject) -> String {
        match subject {
            Subject::Node => "node".into(),
            Subject::Unknown => "unknown".into(),
            Subject::Pod(pod) => pod.name.clone(),
        }
    }

    #[test]
    fn a_reused_inode_names_who_had_it_then() {
        let index = PodIndex::new(NetnsKey { inode: 1, cookie: 1 });
        let (a, b) = (pod("a", 7, 0, 100 * S), pod("b", 7, 0, 200 * S));
        index.add(Arc::clone(&a));
        index.end(&a, 150 * S);
        index.add(Arc::clone(&b));
        let at = |s: u64| name(index.by_netns(NetnsKey { inode: 7, cookie: 0 }, s * S));
        assert_eq!(at(99), "a", "it was there before it was found");
        assert_eq!((at(120), at(151)), ("a".into(), "a".into()));
        assert_eq!(at(153), "b", "between the two the new one is nearer");
        assert_eq!(at(300), "b");
        index.end(&b, 400 * S);
        assert_eq!((at(401), at(403)), ("b".into(), "unknown".into()));
        assert_eq!(name(index.by_netns(NetnsKey { inode: 1, cookie: 0 }, 5)), "node");
    }

    #[test]
    fn a_cookie_decides_whatever_the_time() {
        let index = PodIndex::default();
        let (a, b) = (pod("a", 7, 70, 100 * S), pod("b", 7, 71, 200 * S));
        index.add(Arc::clone(&a));
        index.end(&a, 150 * S);
        index.add(b);
        let of = |cookie| name(index.by_netns(NetnsKey { inode: 7, cookie }, 300 * S));
        assert_eq!((of(70), of(71)), ("a".into(), "b".into()));
        assert_eq!(
            of(72),
            "unknown",
            "the inode was reused and the new owner is not found yet"
        );
        assert_eq!(of(0), "b", "a record without a cookie goes by time");
    }

    #[test]
    fn a_pod_whose_cookie_could_not_be_read_goes_by_time() {
        let index = PodIndex::default();
        let a = pod("a", 7, 70, 100 * S);
        index.add(Arc::clone(&a));
        index.end(&a, 150 * S);
        index.add(pod("b", 7, 0, 200 * S));
        assert_eq!(name(index.by_netns(NetnsKey { inode: 7, cookie: 99 }, 300 * S)), "b");
        assert_eq!(
            name(index.by_netns(NetnsKey { inode: 7, cookie: 99 }, 120 * S)),
            "unknown"
        );
    }

    #[test]
    fn an_address_names_its_only_owner_at_that_time() {
        let index = PodIndex::default();
        let (a, b) = (pod("a", 7, 70, 0), pod("b", 8, 71, 0));
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let with = |ip| Facts {
            addresses: vec![ip],
            host_ifindexes: vec![4],
        };
        index.add(Arc::clone(&a));
        index.add(Arc::clone(&b));
        index.set_facts(Some(&a), with(ip), 100 * S);
        let at = |s: u64| index.by_ip(ip, s * S).map(name);
        assert_eq!(at(99).as_deref(), Some("a"), "found a moment after it was given");
        assert_eq!(at(90), None);
        index.end(&a, 200 * S);
        index.set_facts(Some(&b), with(ip), 201 * S);
        assert_eq!(
            (at(199).as_deref(), at(200).as_deref(), at(300).as_deref()),
            (Some("a"), Some("b"), Some("b"))
        );
        assert_eq!(index.by_host_ifindex(4, 150 * S).map(name).as_deref(), Some("a"));
        assert_eq!(index.addresses(&b), [ip]);

        // Two pods of one node with one address: no answer is better than a wrong one.
        index.set_facts(None, with(ip), 301 * S);
        assert_eq!(at(310), None);
        assert_eq!(index.by_ip("127.0.0.1".parse().unwrap(), 310 * S), None);
    }

    #[test]
    fn a_pod_on_the_host_network_is_there_but_owns_no_events() {
        let index = PodIndex::new(NetnsKey { inode: 1, cookie: 1 });
        let shared = Arc::new(Pod {
            sandbox: "s".into(),
            name: "proxy".into(),
            host_network: true,
            ..Pod::default()
        });
        index.add(Arc::clone(&shared));
        assert_eq!(index.live().len(), 1);
        for key in [NetnsKey { inode: 1, cookie: 1 }, NetnsKey { inode: 1, cookie: 0 }] {
            assert_eq!(name(index.by_netns(key, now())), "node");
        }
        assert_eq!(name(index.by_netns(NetnsKey::default(), now())), "unknown");
        index.end(&shared, 5 * S);
        assert!(index.live().is_empty() && shared.has_ended());
    }

    fn now() -> u64 {
        4 * S
    }

    #[test]
    fn history_ends() {
        let index = PodIndex::default();
        let a = pod("a", 7, 70, 0);
        index.add(Arc::clone(&a));
        index.set_facts(
            Some(&a),
            Facts {
                addresses: vec!["10.0.0.1".parse().unwrap()],
                host_ifindexes: vec![4],
            },
            0,
        );
        index.end(&a, S);
        assert!(index.live().is_empty());
        index.forget(S + HISTORY_NS);
        assert_eq!(index.inner.read().by_inode.len(), 1);
        index.forget(2 * S + HISTORY_NS);
        let inner = index.inner.read();
        assert!(inner.by_inode.is_empty() && inner.by_ip.is_empty() && inner.by_host_ifindex.is_empty());
    }
}
