//! POST requests to any URL: plain or TLS, with credentials that are read anew for each request and never shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::Outcome;

/// How much of an answer is read: enough to say what is wrong.
const ANSWER_BYTES: usize = 4096;
/// A server that closes idle connections sooner than this costs a retry.
const IDLE: Duration = Duration::from_secs(20);

/// What is wrong with what was configured.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("expected `http://HOST[:PORT][/PATH]` or `https://...`: {0}")]
    Url(String),
    #[error("{}: no certificate can be read from it: {why}", path.display())]
    Ca { path: PathBuf, why: String },
    #[error("the system has no certificates to check servers by: {0}")]
    NoRoots(String),
    #[error("{0}: is not set in the environment")]
    NoVariable(String),
    #[error("`{0}` cannot be a header")]
    Header(String),
}

/// Where a secret is. It is read when it is needed, so that one that is replaced is seen, and shown nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
}

impl Secret {
    /// Without a line's end after it. The error says where, not what.
    async fn read(&self) -> Result<String, String> {
        let text = match self {
            Self::File(path) => tokio::fs::read_to_string(path)
                .await
                .map_err(|error| format!("{}: {error}", path.display()))?,
            Self::Variable(name) => std::env::var(name).map_err(|error| format!("variable {name}: {error}"))?,
        };
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Variables do not come later; files may.
    fn check(&self) -> Result<(), HttpError> {
        match self {
            Self::Variable(name) if std::env::var_os(name).is_none() => Err(HttpError::NoVariable(name.clone())),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    None,
    Basic {
        user: String,
        password: Secret,
    },
    Bearer(Secret),
}

impl Auth {
    async fn header(&self) -> Result<Option<HeaderValue>, String> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Basic { user, password } => {
                let both = format!("{user}:{}", password.read().await?);
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
            }
            Self::Bearer(token) => format!("Bearer {}", token.read().await?),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| "the secret cannot be a header".to_owned())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A place to POST to.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    auth: Auth,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Http {
    /// `url` without a path gets `path`. `ca`: a PEM file with the certificates to check the server by, instead of the
    /// system's. Nothing is connected.
    pub fn new(url: &str, path: &str, ca: Option<&Path>, auth: Auth) -> Result<Self, HttpError> {
        let uri = with_path(url, path)?;
        match &auth {
            Auth::None => {}
            Auth::Basic { password: secret, .. } | Auth::Bearer(secret) => secret.check()?,
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(Duration::from_secs(5)));
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(&uri, ca)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self {
            client,
            uri,
            auth,
            headers: vec![(
                USER_AGENT,
                HeaderValue::from_static(concat!("sonde/", env!("CARGO_PKG_VERSION"))),
            )],
        })
    }

    /// Sent with every request.
    pub fn header(mut self, name: &'static str, value: &str) -> Result<Self, HttpError> {
        let value = HeaderValue::try_from(value).map_err(|_| HttpError::Header(value.to_owned()))?;
        self.headers.push((HeaderName::from_static(name), value));
        Ok(self)
    }

    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Any 2xx: sent. 408, 429, 5xx, and no answer at all: again, not before `Retry-After` if the answer has one. All
    /// else: refused, with what the server said.
    pub async fn post(&self, kind: &'static str, body: Bytes) -> Outcome {
        self.ask(kind, body)
            .await
            .map_or_else(|outcome| outcome, |_| Outcome::Sent)
    }

    /// The same, with the beginning of what a server says that took it.
    pub async fn ask(&self, kind: &'static str, body: Bytes) -> Result<Bytes, Outcome> {
        let auth = match self.auth.header().await {
            Ok(auth) => auth,
            // A file that is being replaced.
            Err(why) => return Err(Outcome::retry(format!("no credentials: {why}"))),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.extend(self.headers.iter().cloned());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(auth) = auth {
            headers.insert(AUTHORIZATION, auth);
        }
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return Err(Outcome::retry(chain(&error))),
        };
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            // Read to its end, so that the connection can be used again.
            let said = Limited::new(body, ANSWER_BYTES).collect().await;
            return Ok(said.map(|said| said.to_bytes()).unwrap_or_default());
        }
        let said = match Limited::new(body, ANSWER_BYTES).collect().await {
            Ok(said) => one_line(&String::from_utf8_lossy(&said.to_bytes())),
            Err(error) => format!("(the answer could not be read: {error})"),
        };
        let why = format!("{}: {said}", head.status).trim_end_matches(": ").to_owned();
        if is_passing(head.status) {
            let after = head
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?));
            return Err(Outcome::Retry { done: 0, why, after });
        }
        Err(Outcome::Refused { why })
    }
}

/// Whether the same request may be taken later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    // The date of HTTP says GMT.
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    let now = jiff::Timestamp::now();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn with_path(url: &str, path: &str) -> Result<Uri, HttpError> {
    let uri: Uri = url
        .parse()
        .map_err(|error: http::uri::InvalidUri| HttpError::Url(error.to_string()))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(HttpError::Url("no such scheme".into()));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(HttpError::Url("no host".into()));
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(HttpError::Url("credentials do not belong into it".into()));
    }
    if uri.path() != "/" {
        return Ok(uri);
    }
    let mut parts = uri.into_parts();
    let query = parts.path_and_query.as_ref().and_then(|path| path.query());
    let whole = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    parts.path_and_query = whole.parse().ok();
    Uri::from_parts(parts).map_err(|error| HttpError::Url(error.to_string()))
}

fn tls(uri: &Uri, ca: Option<&Path>) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        Some(path) => {
            let bad = |why: String| HttpError::Ca {
                path: path.to_owned(),
                why,
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad("it holds none".into()));
            }
        }
        None if uri.scheme_str() == Some("https") => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map_or("none found".into(), ToString::to_string);
                return Err(HttpError::NoRoots(why));
            }
        }
        None => {}
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpError::NoRoots(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn one_line(text: &str) -> String {
    const MOST: usize = 500;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line[..line.floor_char_boundary(MOST)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_gets_the_usual_one() {
        let path = |url| {
            with_path(url, "/push")
                .map(|uri| uri.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(path("http://loki:3100").unwrap(), "http://loki:3100/push");
        assert_eq!(path("https://loki/?a=b").unwrap(), "https://loki/push?a=b");
        assert_eq!(path("https://x/own/path").unwrap(), "https://x/own/path");
        for (bad, why) in [
            ("loki:3100", "no such scheme"),
            ("ftp://loki", "no such scheme"),
            ("http://me:secret@loki", "credentials do not belong into it"),
            ("http://", "empty string"),
            ("", "empty string"),
        ] {
            let error = path(bad).unwrap_err();
            assert!(error.contains("expected `http") && !error.contains("secret"), "{error}");
            assert!(error.ends_with(why) || error.contains("invalid"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let text = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = retry_after(&text).unwrap().as_secs();
        assert!((90..=100).contains(&wait), "{text}: {wait}");
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn what_cannot_work_is_said_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let new = |ca: &Path, auth| {
            Http::new("https://x", "/", Some(ca), auth)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let error = new(&ca, Auth::None).unwrap_err();
        assert!(error.contains("ca.pem") && error.contains("No such file"), "{error}");
        std::fs::write(&ca, "no certificate\n").unwrap();
        assert!(new(&ca, Auth::None).unwrap_err().ends_with("it holds none"));
        let auth = Auth::Bearer(Secret::Variable("SONDE_TEST_NO_SUCH".into()));
        let error = Http::new("http://x", "/", None, auth).unwrap_err().to_string();
        assert_eq!(error, "SONDE_TEST_NO_SUCH: is not set in the environment");
    }
}
