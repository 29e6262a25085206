//! Whose an observation is, and who is at its other end.

use std::net::IpAddr;

use super::clock;
use crate::event::{Direction, Event, Observation, Subject};
use crate::pods::PodIndex;

/// Gives an observation its time in UTC, its subject and its peer. Asked again later, the answer may be better: the
/// index learns of pods late.
///
/// A drop on the host's side belongs to the pod it was to or from, if that is one of this node: first the one behind
/// the device (a veth pair's other end), else by address. A drop whose record names no namespace goes by address.
pub fn attribute(observation: Observation, index: &PodIndex) -> Event {
    let time_ns = clock().utc_ns(observation.ktime_ns);
    let subject = subject(&observation, index, time_ns);
    let peer = peer(&observation, &subject, index, time_ns);
    Event {
        time_ns,
        subject,
        peer,
        observation,
    }
}

fn subject(observation: &Observation, index: &PodIndex, at_ns: u64) -> Subject {
    let place = match observation.netns {
        Some(netns) => index.by_netns(netns, at_ns),
        None => Subject::Unknown,
    };
    let by_ip = |ip: Option<IpAddr>| pod(ip.and_then(|ip| index.by_ip(ip, at_ns)));
    let (source, destination) = (observation.saddr, observation.daddr);
    let by_address = || match observation.direction {
        _ if observation.of_socket => by_ip(source),
        Direction::Ingress => by_ip(destination),
        Direction::Egress => by_ip(source),
        Direction::Forward | Direction::Unknown => by_ip(destination).or_else(|| by_ip(source)),
    };
    match place {
        Subject::Node if observation.of_socket => Subject::Node,
        Subject::Node => {
            // Only a device of the host's own namespace has its index there.
            let behind = match observation.ifindex {
                0 => None,
                ifindex => pod(index.by_host_ifindex(ifindex, at_ns)),
            };
            behind.or_else(by_address).unwrap_or(Subject::Node)
        }
        // A namespace that is known to be nobody's stays so, whatever addresses it uses.
        Subject::Unknown if observation.netns.is_none() => by_address().unwrap_or(Subject::Unknown),
        place => place,
    }
}

fn pod(found: Option<Subject>) -> Option<Subject> {
    found.filter(|subject| matches!(subject, Subject::Pod(_)))
}

/// The end of the connection that is not the subject. On the host's side of a veth pair what comes in is what the pod
/// sends, so the direction does not tell which end that is.
fn peer(observation: &Observation, subject: &Subject, index: &PodIndex, at_ns: u64) -> Option<Subject> {
    let ends = [observation.saddr, observation.daddr].into_iter().flatten();
    ends.filter_map(|ip| index.by_ip(ip, at_ns))
        .find(|owner| owner != subject)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NetnsKey;
    use crate::pods::{Facts, Pod};
    use std::sync::Arc;

    const HOST: NetnsKey = NetnsKey { inode: 1, cookie: 1 };

    fn index() -> PodIndex {
        let index = PodIndex::new(HOST);
        for (name, inode, ip, ifindex) in [("a", 7, "10.0.0.1", 41), ("b", 8, "10.0.0.2", 42)] {
            let pod = Arc::new(Pod {
                sandbox: name.into(),
                name: name.into(),
                netns: NetnsKey {
                    inode,
                    cookie: u64::from(inode),
                },
                ..Pod::default()
            });
            index.add(Arc::clone(&pod));
            let facts = Facts {
                addresses: vec![ip.parse().unwrap()],
                host_ifindexes: vec![ifindex],
            };
            index.set_facts(Some(&pod), facts, 0);
        }
        index
    }

    fn seen(inode: u32, direction: Direction, change: impl Fn(&mut Observation)) -> (String, String) {
        let mut observation = Observation {
            ktime_ns: crate::kernel::clock::monotonic_ns(),
            netns: (inode != 0).then_some(NetnsKey {
                inode,
                cookie: u64::from(inode),
            }),
            saddr: Some("10.0.0.1".parse().unwrap()),
            daddr: Some("10.0.0.2".parse().unwrap()),
            direction,
            ..Observation::default()
        };
        change(&mut observation);
        let event = attribute(observation, &index());
        let name = |subject: &Subject| match subject {
            Subject::Node => "node".to_owned(),
            Subject::Unknown => "unknown".to_owned(),
            Subject::Pod(pod) => pod.name.clone(),
        };
        (name(&event.subject), event.peer.as_ref().map_or_else(String::new, name))
    }

    fn names(subject: &str, peer: &str) -> (String, String) {
        (subject.into(), peer.into())
    }

    #[test]
    fn a_drop_in_a_pods_namespace_is_the_pods_whoever_sent_the_packet() {
        assert_eq!(seen(8, Direction::Ingress, |_| ()), names("b", "a"));
        assert_eq!(seen(7, Direction::Egress, |_| ()), names("a", "b"));
    }

    #[test]
    fn a_drop_on_the_hosts_side_is_the_pods_behind_the_device() {
        assert_eq!(seen(1, Direction::Ingress, |o| o.ifindex = 41), names("a", "b"));
        assert_eq!(seen(1, Direction::Forward, |o| o.ifindex = 42), names("b", "a"));
    }

    #[test]
    fn without_such_a_device_the_address_decides() {
        assert_eq!(seen(1, Direction::Ingress, |o| o.ifindex = 2), names("b", "a"));
        assert_eq!(seen(1, Direction::Egress, |_| ()), names("a", "b"));
        let foreign = |o: &mut Observation| o.daddr = Some("192.0.2.1".parse().unwrap());
        assert_eq!(seen(1, Direction::Ingress, foreign), names("node", "a"));
        assert_eq!(seen(1, Direction::Forward, foreign), names("a", ""));
    }

    #[test]
    fn a_socket_of_the_host_is_the_hosts_whichever_pod_it_talks_to() {
        let of_socket = |o: &mut Observation| {
            (o.of_socket, o.saddr) = (true, Some("192.0.2.1".parse().unwrap()));
        };
        assert_eq!(seen(1, Direction::Ingress, of_socket), names("node", "b"));
        assert_eq!(seen(0, Direction::Ingress, |o| o.of_socket = true), names("a", "b"));
    }

    #[test]
    fn an_index_of_another_namespace_is_not_the_hosts() {
        assert_eq!(seen(8, Direction::Ingress, |o| o.ifindex = 41).0, "b");
    }

    #[test]
    fn a_record_without_a_namespace_goes_by_address_and_a_strangers_does_not() {
        assert_eq!(seen(0, Direction::Ingress, |_| ()), names("b", "a"));
        assert_eq!(seen(99, Direction::Ingress, |_| ()).0, "unknown");
    }
}
