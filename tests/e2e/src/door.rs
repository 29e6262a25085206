//! The doors of a running system: REST, SQL, federation, the collector's own page.

use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sonde_lab::wait::{Look, until};
use sonde_lab::{Family, Pod, sockets};

use crate::prom::{self, Sample};
use crate::site::{LIMIT, Site};
use crate::{http, process};

impl Site {
    /// All events that match, page by page, oldest first.
    pub fn events(&self, filters: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("from", "-1h"), ("order", "asc"), ("limit", "1000")];
            query.extend(filters);
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let page = http::json(self.http, "/api/v1/events", &query)?;
            let new = page["events"].as_array().context("no `events` in the answer")?;
            events.extend(new.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(events),
            }
        }
    }

    /// Waits until the aggregator shows a state that `found` accepts; `found` says what is missing.
    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
        let mut failure = None;
        let result = until(what, LIMIT, || {
            Ok(match found() {
                Ok(Ok(found)) => Look::Found(Some(found)),
                Ok(Err(missing)) => Look::NotYet(missing),
                Err(error) => {
                    failure = Some(error);
                    Look::Found(None)
                }
            })
        })?;
        match (result, failure) {
            (Some(found), _) => Ok(found),
            (None, Some(error)) => Err(error.context(what.to_owned())),
            (None, None) => bail!("{what}: neither found nor failed"),
        }
    }

    /// Until the aggregator knows these pods.
    pub fn await_pods(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            self.until(&format!("pod {pod} in /api/v1/pods"), || {
                let answer = http::json(
                    self.http,
                    "/api/v1/pods",
                    &[("namespace", pod.namespace()), ("pod", pod.name())],
                )?;
                let inode = |found: &Value| found["netns_inode"].as_u64();
                let pods = answer["pods"].as_array().context("no `pods`")?;
                Ok(match pods.iter().any(|found| inode(found) == Some(pod.inode())) {
                    true => Ok(()),
                    false => Err(answer.to_string()),
                })
            })?;
        }
        Ok(())
    }

    /// Whatever was to come before is there now. All events of this node come in the order in which they happened, but
    /// for drops of netfilter: these may wait for their ruleset, so what waits is waited for.
    pub fn barrier(&self, client: &Pod, server: &Pod) -> Result<()> {
        self.mark(client, server)?;
        self.until("the collector to explain what netfilter dropped", || {
            let metrics = self.collector_metrics()?;
            let waiting = prom::sum(&metrics, "sonde_collector_netfilter_waiting_events", &[]);
            Ok(if waiting == Some(0.0) {
                Ok(())
            } else {
                Err(format!("{waiting:?} wait"))
            })
        })?;
        self.mark(client, server)
    }

    /// Sends one datagram to a closed port of `server` and waits for its event.
    fn mark(&self, client: &Pod, server: &Pod) -> Result<()> {
        static NEXT: AtomicU16 = AtomicU16::new(50_000);
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = sockets::udp(client, Family::V4, port)?;
        let sent = sockets::send(&socket, server.socket(Family::V4, 9), 1, 8);
        if sent.accepted != 1 {
            bail!("{client}: {sent:?}");
        }
        let port = port.to_string();
        self.until("the event of the barrier", || {
            let events = self.events(&[("namespace", server.namespace()), ("port", &port)])?;
            Ok(if events.is_empty() { Err("none".into()) } else { Ok(()) })
        })
    }

    /// Samples of `/federate`.
    pub fn federate(&self, selector: &str) -> Result<Vec<Sample>> {
        let response = http::get(self.http, "/federate", &[("match[]", selector)])?;
        if response.status != 200 {
            bail!("/federate {selector}: status {}: {}", response.status, response.body);
        }
        prom::parse(&response.body)
    }

    /// Samples of the collector's `/metrics`.
    pub fn collector_metrics(&self) -> Result<Vec<Sample>> {
        prom::parse(&http::get(self.collector_http, "/metrics", &[])?.body)
    }

    /// Rows of a statement, columns separated by `|`, as a person would ask the private PostgreSQL.
    pub fn sql(&self, statement: &str) -> Result<Vec<String>> {
        let socket = self.data_dir().join("aggregator/postgres/run");
        let mut psql = Command::new("psql");
        psql.arg("-h").arg(&socket).args(["-U", "sonde", "-d", "sonde"]);
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        let (code, stdout, stderr) = process::output(psql)?;
        if code != Some(0) {
            bail!("{statement}: {code:?}: {stderr}");
        }
        Ok(stdout.lines().map(str::to_owned).collect())
    }

    /// One number of a statement.
    pub fn sql_number(&self, statement: &str) -> Result<u64> {
        let rows = self.sql(statement)?;
        let [row] = rows.as_slice() else {
            bail!("{statement}: {} rows", rows.len())
        };
        row.parse().with_context(|| format!("{statement}: {row}"))
    }
}
