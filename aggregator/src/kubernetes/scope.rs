//! What one watch covers: a kind of objects, in one namespace or in all.

use super::object::Kind;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) kind: Kind,
    /// None: all, and what has no namespace.
    pub(crate) namespace: Option<String>,
}

impl Scope {
    /// All that is watched. Nodes are in no namespace.
    pub(crate) fn all(namespaces: &[String]) -> Vec<Self> {
        let mut scopes = Vec::new();
        for kind in Kind::ALL {
            if namespaces.is_empty() || !kind.is_namespaced() {
                scopes.push(Self { kind, namespace: None });
                continue;
            }
            let mut within: Vec<&String> = namespaces.iter().collect();
            within.sort_unstable();
            within.dedup();
            scopes.extend(within.into_iter().map(|namespace| Self {
                kind,
                namespace: Some(namespace.clone()),
            }));
        }
        scopes
    }

    /// `pods`, `pods/shop`.
    pub(crate) fn name(&self) -> String {
        match &self.namespace {
            None => self.kind.plural().into(),
            Some(namespace) => format!("{}/{namespace}", self.kind.plural()),
        }
    }

    pub(crate) fn covers(&self, kind: Kind, namespace: &str) -> bool {
        self.kind == kind && self.namespace.as_deref().is_none_or(|own| own == namespace)
    }

    /// `/apis/apps/v1/namespaces/shop/replicasets`.
    pub(super) fn path(&self) -> String {
        let (group, plural) = (self.kind.group(), self.kind.plural());
        match &self.namespace {
            None => format!("{group}/{plural}"),
            Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_watch_for_each_kind_or_one_for_each_kind_and_namespace() {
        let all = Scope::all(&[]);
        assert_eq!(all.len(), Kind::ALL.len());
        assert_eq!(all[0].path(), "/apis/apps/v1/replicasets");
        let some = Scope::all(&["shop".into(), "pay".into(), "shop".into()]);
        let paths: Vec<String> = some.iter().map(Scope::path).collect();
        assert_eq!(paths.len(), 6 * 2 + 1, "{paths:?}");
        assert!(paths.contains(&"/api/v1/namespaces/shop/pods".into()) && paths.contains(&"/api/v1/nodes".into()));
        assert!(some[0].covers(Kind::ReplicaSet, "pay") && !some[0].covers(Kind::ReplicaSet, "shop"));
    }
}
