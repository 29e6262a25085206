//! Where the database is: one host, or several of which one takes writes, written as libpq has it:
//! `postgres://user@h1:5432,h2:5433/db?target_session_attrs=read-write`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::database::{Trial, describe};
use crate::embedded::Complaint;

/// How long one host may take to answer: the only one, and one of several.
const ANSWER: Duration = Duration::from_secs(10);
const ANSWER_OF_SEVERAL: Duration = Duration::from_secs(5);

/// The database, on one host or several. Cheap to clone; all clones know which host was good last.
#[derive(Clone, Debug)]
pub struct Target {
    inner: Arc<Inner>,
    /// Why a server of our own does not run.
    complaint: Complaint,
}

#[derive(Debug)]
struct Inner {
    hosts: Vec<PgConnectOptions>,
    needs: Needs,
    /// Where the last search ended: the next one begins there.
    last: AtomicUsize,
}

/// What a host must be to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Any,
    Writable,
    Primary,
}

/// What is wrong with a URL. Never says the password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUrl(String);

const EXPECTED: &str =
    "expected `postgres://USER:PASSWORD@HOST:PORT[,HOST:PORT ...]/DATABASE[?target_session_attrs=...]`";

/// A connection, and where it leads.
pub(super) struct Found {
    pub(super) connection: PgConnection,
    pub(super) host: usize,
    /// Why nothing can be written there, where that was asked.
    pub(super) read_only: Option<String>,
}

impl From<PgConnectOptions> for Target {
    fn from(options: PgConnectOptions) -> Self {
        Self::new(vec![options], Needs::Any)
    }
}

impl std::str::FromStr for Target {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        let bad = |what: String| BadUrl(format!("{what}; {EXPECTED}"));
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(bad("it does not begin with `postgres://`".into()));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (user, hosts) = authority
            .rsplit_once('@')
            .map_or((String::new(), authority), |(user, hosts)| (format!("{user}@"), hosts));
        let (mut needs, mut parameters) = (None, Vec::new());
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            match parameter.split_once('=') {
                Some(("target_session_attrs", value)) => needs = Some(parse_needs(value).map_err(bad)?),
                Some((key @ ("host" | "hostaddr" | "port"), value)) if value.contains(',') => {
                    return Err(bad(format!(
                        "several values in `{key}`: several hosts stand before the database"
                    )));
                }
                _ => parameters.push(parameter),
            }
        }
        let parameters = parameters.join("&");
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.len() > 1 && hosts.iter().any(|host| host.is_empty()) {
            return Err(bad("a host between commas is empty".into()));
        }
        let options = hosts.iter().map(|host| {
            let one = format!("{scheme}://{user}{host}{path}?{parameters}");
            one.parse::<PgConnectOptions>().map_err(|e| {
                let host = if host.is_empty() {
                    String::new()
                } else {
                    format!("host `{host}`: ")
                };
                bad(format!(
                    "{host}{}",
                    describe(&e).trim_start_matches("error with configuration: ")
                ))
            })
        });
        let options = options.collect::<Result<Vec<_>, _>>()?;
        // libpq would take the first that answers. We only ever want the one that takes writes, but say what one host is.
        let needs = needs.unwrap_or(if options.len() > 1 { Needs::Writable } else { Needs::Any });
        Ok(Self::new(options, needs))
    }
}

fn parse_needs(value: &str) -> Result<Needs, String> {
    match value {
        "any" => Ok(Needs::Any),
        "read-write" => Ok(Needs::Writable),
        "primary" => Ok(Needs::Primary),
        "read-only" | "standby" | "prefer-standby" => Err(format!(
            "`target_session_attrs={value}`: an aggregator writes, so `any`, `read-write` and `primary` are possible"
        )),
        other => Err(format!(
            "`target_session_attrs={other}` is none of `any`, `read-write` and `primary`"
        )),
    }
}

impl Target {
    fn new(hosts: Vec<PgConnectOptions>, needs: Needs) -> Self {
        Self {
            inner: Arc::new(Inner {
                hosts,
                needs,
                last: AtomicUsize::new(0),
            }),
            complaint: Complaint::default(),
        }
    }

    /// A private server, which says why it does not run.
    pub fn with_complaint(self, complaint: Complaint) -> Self {
        Self { complaint, ..self }
    }

    pub(super) fn complaint(&self) -> &Complaint {
        &self.complaint
    }

    /// What reaches the host that was good last.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.inner.hosts[self.inner.last.load(Ordering::Relaxed)]
    }

    pub(super) fn host(&self, at: usize) -> &PgConnectOptions {
        &self.inner.hosts[at]
    }

    /// For messages: the hosts and the database, nothing secret.
    pub fn name(&self) -> String {
        let hosts: Vec<String> = self.inner.hosts.iter().map(host_name).collect();
        let first = &self.inner.hosts[0];
        let database = first.get_database().unwrap_or_else(|| first.get_username());
        format!("{}/{database}", hosts.join(","))
    }

    /// The host that takes writes. One that only reads is better than none.
    pub(super) async fn find(&self, settings: impl Fn(PgConnectOptions) -> PgConnectOptions) -> sqlx::Result<Found> {
        let count = self.inner.hosts.len();
        let first = self.inner.last.load(Ordering::Relaxed);
        let patience = if count == 1 { ANSWER } else { ANSWER_OF_SEVERAL };
        let (mut second_best, mut said) = (None, Vec::new());
        for host in (0..count).map(|n| (first + n) % count) {
            let options = settings(self.inner.hosts[host].clone());
            let attempt = async {
                let mut connection = options.connect().await?;
                let read_only = self.lacks(&mut connection).await?;
                Ok::<_, sqlx::Error>((connection, read_only))
            };
            let attempt = match tokio::time::timeout(patience, attempt).await {
                Ok(attempt) => attempt,
                Err(_) => Err(Trial::error(format!("no answer within {} s", patience.as_secs()))),
            };
            let found = match attempt {
                Ok((connection, read_only)) => Found {
                    connection,
                    host,
                    read_only,
                },
                Err(sqlx::Error::Io(error)) if count == 1 => {
                    return Err(Trial::error(format!("{}: {error}", host_name(&options))));
                }
                Err(error) if count == 1 => return Err(error),
                Err(error) => {
                    said.push(format!("{}: {}", host_name(&self.inner.hosts[host]), describe(&error)));
                    continue;
                }
            };
            match &found.read_only {
                None => {
                    self.inner.last.store(host, Ordering::Relaxed);
                    return Ok(found);
                }
                Some(why) => said.push(format!("{}: {why}", host_name(&self.inner.hosts[host]))),
            }
            second_best.get_or_insert(found);
        }
        let why = format!("no host takes writes ({})", said.join("; "));
        match second_best {
            Some(found) => Ok(Found {
                read_only: Some(why),
                ..found
            }),
            None => Err(Trial::error(why)),
        }
    }

    /// What the host is that it must not be.
    async fn lacks(&self, connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
        if self.inner.needs == Needs::Any {
            return Ok(None);
        }
        let (standby, read_only) = session_state(connection).await?;
        Ok(match self.inner.needs {
            Needs::Any => None,
            Needs::Primary => standby.then(|| STANDBY.to_owned()),
            Needs::Writable => why_read_only(standby, read_only),
        })
    }
}

const STANDBY: &str = "it is a standby";

/// Whether the server is a standby, and whether transactions may only read.
pub(super) async fn session_state(connection: &mut PgConnection) -> sqlx::Result<(bool, bool)> {
    sqlx::query_as("select pg_is_in_recovery(), current_setting('transaction_read_only')::bool")
        .fetch_one(connection)
        .await
}

pub(super) fn why_read_only(standby: bool, read_only: bool) -> Option<String> {
    match (standby, read_only) {
        (true, _) => Some(STANDBY.into()),
        (false, true) => Some("it is read-only (default_transaction_read_only is on)".into()),
        (false, false) => None,
    }
}

fn host_name(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(url: &str) -> String {
        url.parse::<Target>().unwrap_or_else(|e| panic!("{url}: {e}")).name()
    }

    #[test]
    fn a_url_has_one_host_or_several() {
        assert_eq!(names("postgres://u:p@h:5433/db"), "h:5433/db");
        assert_eq!(
            names("postgresql://u@h1,h2:5433/db?sslmode=disable"),
            "h1:5432,h2:5433/db"
        );
        assert_eq!(
            names("postgres://u@[::1]:5432,%2Frun%2Fpg/db?target_session_attrs=primary"),
            "[::1]:5432,/run/pg/db"
        );
        assert_eq!(names("postgres:///db?host=/run/pg"), "/run/pg/db");
        let needs = |url: &str| url.parse::<Target>().unwrap().inner.needs;
        assert_eq!(needs("postgres://u@h/db"), Needs::Any);
        assert_eq!(needs("postgres://u@a,b/db"), Needs::Writable);
        assert_eq!(needs("postgres://u@a,b/db?target_session_attrs=any"), Needs::Any);
        assert_eq!(
            needs("postgres://u@a/db?target_session_attrs=read-write"),
            Needs::Writable
        );
        let target: Target = "postgres://u%40x:p%2Cw@a,b/db".parse().unwrap();
        assert_eq!(target.host(1).get_username(), "u@x");
    }

    #[test]
    fn a_wrong_url_says_what_is_wrong_and_no_password() {
        for (url, expected) in [
            ("mysql://u:secret@h/db", "it does not begin with `postgres://`"),
            ("postgres://u:secret@a,,b/db", "a host between commas is empty"),
            ("postgres://u:secret@a,b:x/db", "host `b:x`: invalid port number"),
            ("postgres://u:secret@a:99999/db", "host `a:99999`: invalid port number"),
            (
                "postgres://u:secret@a/db?sslmode=maybe",
                "host `a`: unknown value \"maybe\" for `ssl_mode`",
            ),
            ("postgres://u:secret@/db?host=a,b", "several values in `host`"),
            (
                "postgres://u:secret@a,b/db?target_session_attrs=standby",
                "`target_session_attrs=standby`: an aggregator",
            ),
            (
                "postgres://u:secret@a,b/db?target_session_attrs=rw",
                "`target_session_attrs=rw` is none of",
            ),
        ] {
            let error = url.parse::<Target>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:?}, expected {expected:?}");
            assert!(
                error.contains("; expected `postgres://") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
