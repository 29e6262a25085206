//! `sonde-collector doctor`: what this host permits, and why the rest is off.

use std::fs::File;
use std::os::fd::AsFd as _;

use sonde_common::config::Config;

use crate::netlink::route::RouteSocket;
use crate::pods::netns;
use crate::probes::PROBES;
use crate::procfs::NetFile;

/// One line each: what, how, and what is missing.
pub fn procfs(config: &Config) -> Vec<String> {
    let paths = config.host.paths();
    let dir = netns::files_dir(&paths);
    let mut lines = Vec::new();
    for probe in PROBES {
        let on = config.probes.get(probe.spec.name).is_none_or(|p| p.enabled);
        let state = if on {
            "procfs"
        } else {
            "off: switched off by the configuration"
        };
        let missing: Vec<String> = probe
            .files
            .iter()
            .filter_map(|file: &NetFile| {
                let error = File::open(dir.join(file.name())).err()?;
                Some(format!("{}: {error}", file.name()))
            })
            .collect();
        let missing = if missing.is_empty() {
            String::new()
        } else {
            format!(" ({})", missing.join("; "))
        };
        lines.push(format!("{:<24} {state}{missing}", probe.spec.name));
    }
    lines.push(format!("{:<24} {}", "network namespaces", entering(config)));
    lines
}

/// Whether this process may enter another network namespace: tried on its own, which needs the same rights.
fn entering(config: &Config) -> String {
    let own = config.host.paths().proc.join("thread-self/ns/net");
    let entered = std::thread::spawn(move || {
        let file = File::open(own)?;
        netns::enter(file.as_fd())
    });
    match entered.join() {
        Ok(Ok(())) => {
            let cookie = RouteSocket::open().map_or(0, |socket| socket.netns_cookie());
            match cookie {
                0 => "entered; told apart by inode and time (no SO_NETNS_COOKIE, Linux 5.14)".to_owned(),
                _ => "entered; told apart by cookie".to_owned(),
            }
        }
        Ok(Err(error)) => format!("cannot be entered, only the own one is read: {error} (needs CAP_SYS_ADMIN)"),
        Err(_) => "could not tell".to_owned(),
    }
}
