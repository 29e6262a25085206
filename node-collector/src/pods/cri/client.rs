//! Calls to a container runtime, each of them bounded in time.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::sandbox::Sandbox;
use super::v1::{self, runtime_service_client::RuntimeServiceClient};

/// Annotations may have 256 KiB each, and the list has those of every sandbox.
const LARGEST: usize = 64 << 20;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{what}: no answer within {} s", within.as_secs_f32())]
    Hangs { what: &'static str, within: Duration },
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("{what}: {} ({})", status.message(), status.code())]
    Refused { what: &'static str, status: Box<Status> },
    #[error("{0}")]
    Answer(String),
}

impl CallError {
    /// Whether it says something of one sandbox rather than of the runtime.
    pub(super) fn is_of_one_sandbox(&self) -> bool {
        match self {
            Self::Hangs { .. } | Self::Unreachable(_) => false,
            Self::Refused { status, .. } => !matches!(status.code(), Code::Unavailable | Code::Cancelled),
            Self::Answer(_) => true,
        }
    }

    /// Whether something listens there that has no such interface: the containerd that belongs to a Docker.
    pub(super) fn is_no_interface(&self) -> bool {
        matches!(self, Self::Refused { what: "Version", status } if status.code() == Code::Unimplemented)
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::NotFound)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Runtime {
    client: RuntimeServiceClient<Channel>,
    within: Duration,
    pub(super) name: String,
    pub(super) version: String,
}

/// A sandbox in the list: whether there is one and whether it is ready, nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) ready: bool,
}

impl Runtime {
    /// No call may take longer than `within`.
    pub(super) async fn connect(socket: &Path, within: Duration) -> Result<Self, CallError> {
        let path = socket
            .to_str()
            .ok_or_else(|| CallError::Unreachable("its path is not UTF-8".to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{path}")).map_err(|error| unreachable(&error))?;
        let connected = bounded("connect", within, endpoint.connect()).await?;
        let channel = connected.map_err(|error| unreachable(&error))?;
        let mut client = RuntimeServiceClient::new(channel).max_decoding_message_size(LARGEST);
        let request = v1::VersionRequest { version: "v1".into() };
        let version = call("Version", within, client.version(request)).await?;
        Ok(Self {
            client,
            within,
            name: version.runtime_name,
            version: version.runtime_version,
        })
    }

    /// All sandboxes, those that are not ready too.
    pub(super) async fn list(&mut self) -> Result<Vec<Listed>, CallError> {
        let list = call(
            "ListPodSandbox",
            self.within,
            self.client.list_pod_sandbox(v1::ListPodSandboxRequest {}),
        )
        .await?;
        let listed = |item: v1::PodSandbox| Listed {
            ready: item.state() == v1::PodSandboxState::SandboxReady,
            id: item.id,
        };
        Ok(list.items.into_iter().map(listed).collect())
    }

    pub(super) async fn status(&self, listed: &Listed) -> Result<Sandbox, CallError> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: listed.id.clone(),
            verbose: true,
        };
        let response = call(
            "PodSandboxStatus",
            self.within,
            self.client.clone().pod_sandbox_status(request),
        )
        .await?;
        let sandbox = Sandbox::new(response, listed.ready).map_err(|error| CallError::Answer(error.to_string()))?;
        if sandbox.id != listed.id {
            return Err(CallError::Answer("the runtime answered for another sandbox".to_owned()));
        }
        Ok(sandbox)
    }

    /// Resolves with the first event, since that is when a runtime answers at all; or when it has no events to tell.
    pub(super) async fn events(mut self) -> Result<Streaming<v1::ContainerEventResponse>, Status> {
        let response = self.client.get_container_events(v1::GetEventsRequest {}).await?;
        Ok(response.into_inner())
    }

    /// Whether to ask for events. containerd 1.7 has one queue for all who ask: we would take the kubelet's away.
    pub(super) fn may_tell_events(&self) -> bool {
        !(self.name == "containerd" && self.version.trim_start_matches('v').starts_with("1."))
    }
}

async fn bounded<T>(what: &'static str, within: Duration, job: impl Future<Output = T>) -> Result<T, CallError> {
    tokio::time::timeout(within, job)
        .await
        .map_err(|_| CallError::Hangs { what, within })
}

async fn call<T>(
    what: &'static str,
    within: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    let answer = bounded(what, within, call).await?;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| CallError::Refused {
            what,
            status: Box::new(status),
        })
}

/// The innermost cause: `transport error` says nothing.
fn unreachable(error: &dyn std::error::Error) -> CallError {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    CallError::Unreachable(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_not_taken_from_a_kubelet() {
        let client = RuntimeServiceClient::new(Endpoint::from_static("unix:///nonexistent").connect_lazy());
        for (name, version, may) in [
            ("containerd", "v1.7.24", false),
            ("containerd", "1.6.20~ds1", false),
            ("containerd", "v2.1.4", true),
            ("cri-o", "1.33.0", true),
            ("docker", "1.2", true),
        ] {
            let runtime = Runtime {
                client: client.clone(),
                within: Duration::from_secs(1),
                name: name.into(),
                version: version.into(),
            };
            assert_eq!(runtime.may_tell_events(), may, "{name} {version}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_says_so() {
        let error = Runtime::connect(Path::new("/nonexistent/x.sock"), Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot be reached: No such file or directory (os error 2)"
        );
        assert!(!error.is_of_one_sandbox() && !error.is_not_found());
    }
}
