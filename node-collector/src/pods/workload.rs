//! Which workload a pod belongs to, from what the collector sees of it: labels, annotations, name.
//!
//! The owner itself is known to the API server alone. Controllers leave marks, though: labels that they need to find
//! their pods again, and names that they make by fixed rules. A name without any mark is taken for what it
//! says only where it can hardly be chance.

use std::collections::BTreeMap;

/// Kind and name of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub kind: &'static str,
    pub name: String,
}

/// What generated names are made of: no vowels, no digits that look like letters (Kubernetes, util/rand).
const SAFE: &str = "bcdfghjklmnpqrstvwxz2456789";
/// Length of the random end of a generated name.
const RANDOM: usize = 5;
/// A name that is to be ended so is cut to this first.
const GENERATED_AT_MOST: usize = 58;

/// The workload of pod `name`; the pod itself where nothing tells of one. `node` ends the names of static pods.
pub fn of_pod(
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    node: &str,
) -> Workload {
    let label = |key: &str| labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let found = |kind, name: &str| Workload {
        kind,
        name: name.to_owned(),
    };
    if is_static(annotations) {
        let own = name.strip_suffix(node).and_then(|rest| rest.strip_suffix('-'));
        return found("StaticPod", own.filter(|own| !own.is_empty()).unwrap_or(name));
    }
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return match cron_job(job) {
            Some(cron) => found("CronJob", cron),
            None => found("Job", job),
        };
    }
    let numbered =
        label("statefulset.kubernetes.io/pod-name") == Some(name) || label("apps.kubernetes.io/pod-index").is_some();
    if let Some((set, _)) = ordinal(name).filter(|_| numbered) {
        return found("StatefulSet", set);
    }
    for (key, kind) in [
        ("pod-template-hash", "Deployment"),
        ("rollouts-pod-template-hash", "Rollout"),
    ] {
        if let Some(hash) = label(key) {
            return found(kind, without_hash(name, hash));
        }
    }
    if let Some(revision) = label("controller-revision-hash") {
        // A StatefulSet's is `<name>-<hash>`, a DaemonSet's only the hash.
        return match ordinal(name) {
            Some((set, _)) if revision.strip_prefix(set).is_some_and(|rest| rest.starts_with('-')) => {
                found("StatefulSet", set)
            }
            _ => found("DaemonSet", generated(name).unwrap_or(name)),
        };
    }
    by_name(name).unwrap_or_else(|| found("Pod", name))
}

/// Pods of files and URLs that the kubelet itself was given, with the API server's mirror of them.
fn is_static(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key("kubernetes.io/config.mirror")
        || annotations
            .get("kubernetes.io/config.source")
            .is_some_and(|source| !source.is_empty() && source != "api")
}

/// A CronJob names its jobs by the time they were due: minutes since 1970 (8 digits), before Kubernetes 1.21 seconds.
fn cron_job(job: &str) -> Option<&str> {
    let (cron, time) = job.rsplit_once('-')?;
    let is_time = matches!(time.len(), 8 | 10) && time.bytes().all(|b| b.is_ascii_digit());
    (is_time && !cron.is_empty()).then_some(cron)
}

/// `web-0`: the name before the number, and the number.
fn ordinal(name: &str) -> Option<(&str, u32)> {
    let (set, number) = name.rsplit_once('-')?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let canonical = plain && (number == "0" || !number.starts_with('0'));
    (canonical && !set.is_empty()).then_some((set, number.parse().ok()?))
}

/// The name that was given, without its random end.
fn generated(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(RANDOM)?;
    let end = name.get(at..)?;
    let base = name[..at].trim_end_matches('-');
    // A long name is cut where its blank would be.
    let parted = base.len() < at || at == GENERATED_AT_MOST;
    (parted && !base.is_empty() && is_safe(end)).then_some(base)
}

/// `<deployment>-<hash>-<random>`; of a long one only the beginning of the hash, or nothing of it, is left.
fn without_hash<'a>(name: &'a str, hash: &str) -> &'a str {
    let Some(set) = generated(name) else { return name };
    let tail = format!("-{hash}");
    (2..=tail.len())
        .rev()
        .filter(|len| *len == tail.len() || name.len() == GENERATED_AT_MOST + RANDOM)
        .find_map(|len| set.strip_suffix(tail.get(..len)?))
        .filter(|deployment| !deployment.is_empty())
        .unwrap_or(set)
}

/// No mark at all: a hash of a template and a random end together are no chance; a random end alone must hold a digit.
fn by_name(name: &str) -> Option<Workload> {
    let set = generated(name)?;
    let found = |kind, name: &str| Workload {
        kind,
        name: name.to_owned(),
    };
    if let Some((deployment, hash)) = set.rsplit_once('-')
        && (8..=10).contains(&hash.len())
        && is_safe(hash)
        && hash.bytes().any(|b| b.is_ascii_digit())
        && !deployment.is_empty()
    {
        return Some(found("Deployment", deployment));
    }
    let random = &name[name.len() - RANDOM..];
    let digit = random.bytes().any(|b| b.is_ascii_digit());
    let letter = random.bytes().any(|b| b.is_ascii_lowercase());
    (digit && letter).then(|| found("ReplicaSet", set))
}

fn is_safe(text: &str) -> bool {
    text.chars().all(|c| SAFE.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn workload(name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> String {
        let found = of_pod(name, &map(labels), &map(annotations), "node-1");
        format!("{}/{}", found.kind, found.name)
    }

    #[test]
    fn labels_tell_the_workload() {
        let long = "a-very-long-name-of-a-deployment-that-does-not-fit-at-all-";
        assert_eq!(long.len(), GENERATED_AT_MOST);
        let at_limit = "another-long-name-of-a-deployment-that-nearly-fits-it-5d4fq7x9z";
        assert_eq!(at_limit.len(), GENERATED_AT_MOST + RANDOM);
        let template = |hash| [("pod-template-hash", hash)];
        for (name, labels, expected) in [
            ("web-5d4f6c7b8-x2x4z", &template("5d4f6c7b8")[..], "Deployment/web"),
            (
                "my-web-app-5d4f6c7b8-x2x4z",
                &template("5d4f6c7b8"),
                "Deployment/my-web-app",
            ),
            // Of old clusters: hashes of digits.
            ("web-1234567890-bcdfg", &template("1234567890"), "Deployment/web"),
            // The label was set by hand and the name has nothing of it.
            ("web-0", &template("5d4f6c7b8"), "Deployment/web-0"),
            (
                &format!("{long}x2x4z"),
                &template("5d4f6c7b8"),
                &format!("Deployment/{}", &long[..57]),
            ),
            (
                at_limit,
                &template("5d4fqqqqq"),
                "Deployment/another-long-name-of-a-deployment-that-nearly-fits-it",
            ),
            (
                "canary-7c9d8-x2x4z",
                &[("rollouts-pod-template-hash", "7c9d8")],
                "Rollout/canary",
            ),
            (
                "db-0",
                &[
                    ("statefulset.kubernetes.io/pod-name", "db-0"),
                    ("controller-revision-hash", "db-6f7c"),
                ],
                "StatefulSet/db",
            ),
            (
                "db-shard-12",
                &[("apps.kubernetes.io/pod-index", "12")],
                "StatefulSet/db-shard",
            ),
            (
                "db-3",
                &[("controller-revision-hash", "db-6f7c8d9b4")],
                "StatefulSet/db",
            ),
            (
                "agent-x2x4z",
                &[
                    ("controller-revision-hash", "6f7c8d9b4"),
                    ("pod-template-generation", "1"),
                ],
                "DaemonSet/agent",
            ),
            // A DaemonSet whose random end is all digits is no StatefulSet.
            (
                "agent-24562",
                &[("controller-revision-hash", "6f7c8d9b4")],
                "DaemonSet/agent",
            ),
            ("import-x2x4z", &[("job-name", "import")], "Job/import"),
            (
                "backup-28935000-x2x4z",
                &[
                    ("batch.kubernetes.io/job-name", "backup-28935000"),
                    ("job-name", "backup-28935000"),
                ],
                "CronJob/backup",
            ),
            (
                "backup-1735689600-x2x4z",
                &[("job-name", "backup-1735689600")],
                "CronJob/backup",
            ),
            ("report-2024-x2x4z", &[("job-name", "report-2024")], "Job/report-2024"),
            // An indexed job has numbered pods too.
            (
                "train-3-x2x4z",
                &[("job-name", "train"), ("batch.kubernetes.io/job-completion-index", "3")],
                "Job/train",
            ),
        ] {
            assert_eq!(workload(name, labels, &[]), expected, "{name}");
        }
    }

    #[test]
    fn a_static_pod_is_named_without_its_node() {
        let file = [
            ("kubernetes.io/config.source", "file"),
            ("kubernetes.io/config.hash", "c0ffee"),
        ];
        assert_eq!(
            workload("kube-apiserver-node-1", &[], &file),
            "StaticPod/kube-apiserver"
        );
        let mirror = [("kubernetes.io/config.mirror", "c0ffee")];
        assert_eq!(workload("etcd-node-1", &[], &mirror), "StaticPod/etcd");
        assert_eq!(workload("etcd-other", &[], &mirror), "StaticPod/etcd-other");
        assert_eq!(workload("node-1", &[], &mirror), "StaticPod/node-1");
        let api = [("kubernetes.io/config.source", "api")];
        assert_eq!(workload("etcd-node-1", &[], &api), "Pod/etcd-node-1");
    }

    #[test]
    fn without_marks_only_a_name_that_is_no_chance_tells() {
        for (name, expected) in [
            ("web-5d4f6c7b8-x2x4z", "Deployment/web"),
            ("web-x2x4z", "ReplicaSet/web"),
            ("web", "Pod/web"),
            ("web-0", "Pod/web-0"),
            ("web-https", "Pod/web-https"),
            ("web-24562", "Pod/web-24562"),
            ("redis-cache", "Pod/redis-cache"),
            ("-x2x4z", "Pod/-x2x4z"),
            ("x2x4z", "Pod/x2x4z"),
            ("", "Pod/"),
            ("a-b", "Pod/a-b"),
            ("ü-x2x4z", "ReplicaSet/ü"),
            ("xüü-é2", "Pod/xüü-é2"),
        ] {
            assert_eq!(workload(name, &[], &[]), expected, "{name}");
        }
    }
}
