//! How the API is reached, or why it is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use sonde_common::config::{Enabled, Kubernetes};

/// Where a pod finds its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const HOST: &str = "KUBERNETES_SERVICE_HOST";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Kubeconfig {
        path: PathBuf,
        context: Option<String>,
    },
    ServiceAccount,
    /// Why not, for people.
    Off(&'static str),
}

/// What the process finds around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub(crate) in_cluster: bool,
}

impl Around {
    pub(crate) fn look() -> Self {
        Self {
            in_cluster: std::env::var_os(HOST).is_some() && Path::new(TOKEN).exists(),
        }
    }
}

/// Why the aggregator does not start. One line, with the key.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(
        "kubernetes.enabled: `on`: expected `kubernetes.kubeconfig`, or to run in a pod with a service account ({HOST} and {TOKEN})"
    )]
    Nothing,
    #[error("kubernetes.kubeconfig: `{}`: {why}", path.display())]
    Kubeconfig { path: PathBuf, why: String },
    #[error("kubernetes: the service account cannot be used: {0}")]
    ServiceAccount(String),
}

pub(crate) fn plan(config: &Kubernetes, around: Around) -> Result<Access, AccessError> {
    if config.enabled == Enabled::Off {
        return Ok(Access::Off("kubernetes.enabled is off"));
    }
    if !config.kubeconfig.as_os_str().is_empty() {
        return Ok(Access::Kubeconfig {
            path: config.kubeconfig.clone(),
            context: Some(config.context.clone()).filter(|c| !c.is_empty()),
        });
    }
    if around.in_cluster {
        return Ok(Access::ServiceAccount);
    }
    match config.enabled {
        Enabled::On => Err(AccessError::Nothing),
        Enabled::Auto | Enabled::Off => Ok(Access::Off(
            "no kubeconfig is given, and this is no pod with a service account",
        )),
    }
}

/// None: not to be reached, as planned.
pub(crate) async fn client(access: &Access) -> Result<Option<Client>, AccessError> {
    let mut config = match access {
        Access::Off(_) => return Ok(None),
        Access::Kubeconfig { path, context } => {
            let refused = |why: String| AccessError::Kubeconfig {
                path: path.clone(),
                why: why.replace('\n', " "),
            };
            let file = Kubeconfig::read_from(path).map_err(|e| refused(super::watch::chain(&e)))?;
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|e| refused(super::watch::chain(&e)))?
        }
        Access::ServiceAccount => {
            kube::Config::incluster().map_err(|e| AccessError::ServiceAccount(super::watch::chain(&e)))?
        }
    };
    // The watches have limits of their own: one for all requests would end quiet watches.
    config.read_timeout = None;
    // The watches have pauses of their own too, and say that they make them.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    let client = Client::try_from(config).map_err(|e| match access {
        Access::Kubeconfig { path, .. } => AccessError::Kubeconfig {
            path: path.clone(),
            why: super::watch::chain(&e),
        },
        Access::ServiceAccount | Access::Off(_) => AccessError::ServiceAccount(super::watch::chain(&e)),
    })?;
    Ok(Some(client))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(enabled: Enabled, kubeconfig: &str) -> Kubernetes {
        Kubernetes {
            enabled,
            kubeconfig: kubeconfig.into(),
            ..Kubernetes::default()
        }
    }

    #[test]
    fn a_kubeconfig_goes_before_the_service_account_and_off_before_both() {
        let (inside, outside) = (Around { in_cluster: true }, Around { in_cluster: false });
        let file = Access::Kubeconfig {
            path: "/f".into(),
            context: None,
        };
        assert_eq!(plan(&given(Enabled::Auto, "/f"), inside).unwrap(), file);
        assert_eq!(plan(&given(Enabled::On, "/f"), outside).unwrap(), file);
        assert_eq!(plan(&given(Enabled::Auto, ""), inside).unwrap(), Access::ServiceAccount);
        for (enabled, path, around) in [(Enabled::Off, "/f", inside), (Enabled::Auto, "", outside)] {
            assert!(matches!(plan(&given(enabled, path), around).unwrap(), Access::Off(_)));
        }
        let error = plan(&given(Enabled::On, ""), outside).unwrap_err().to_string();
        assert!(error.starts_with("kubernetes.enabled: `on`: expected"), "{error}");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_or_not_one_names_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let access = |path: &Path| Access::Kubeconfig {
            path: path.into(),
            context: Some("there".into()),
        };
        let error = client(&access(&path)).await.err().unwrap().to_string();
        assert!(
            error.starts_with(&format!("kubernetes.kubeconfig: `{}`:", path.display())),
            "{error}"
        );
        for text in ["", "[", "apiVersion: v1\nkind: Config\ncontexts: []\n"] {
            std::fs::write(&path, text).unwrap();
            let error = client(&access(&path)).await.err().unwrap().to_string();
            assert!(
                error.starts_with("kubernetes.kubeconfig:") && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }
}
