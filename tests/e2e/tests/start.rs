//! Bad input ends a program with one clear line, and SIGTERM ends the whole system in order.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sonde_e2e::http;
use sonde_e2e::process::{Process, command, output};
use sonde_e2e::site::Site;
use sonde_lab::Lab;

/// The three programs and how each is started.
const PROGRAMS: [(&str, &str); 3] = [
    ("sonde", "up"),
    ("sonde-aggregator", "serve"),
    ("sonde-collector", "run"),
];

fn with_config(program: &str, subcommand: &str, config: &Path) -> Result<Command> {
    let mut command = command(program)?;
    command.arg(subcommand).arg("--config").arg(config);
    Ok(command)
}

fn expect_line(command: Command, code: i32, parts: &[&str]) -> Result<()> {
    let shown = format!("{command:?}");
    let (found, stdout, stderr) = output(command)?;
    ensure!(
        found == Some(code),
        "{shown}: exit code {found:?}, expected {code}: {stdout}{stderr}"
    );
    let lines: Vec<&str> = stderr.lines().collect();
    let [line] = lines.as_slice() else {
        anyhow::bail!("{shown}: expected one line, found: {stderr}");
    };
    for part in parts {
        ensure!(line.contains(part), "{shown}: expected {part:?} in: {line}");
    }
    Ok(())
}

#[test]
fn a_bad_configuration_is_named_with_key_value_and_what_was_expected() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.yaml");
    for (yaml, parts) in [
        (
            "pods: {include_hosts: true}\n",
            ["include_hosts", "include_host", "line 1"],
        ),
        ("collector:\n  interval: 15\n", ["15", "15s", "line 2"]),
        ("events: {rate: many}\n", ["many", "u32", "line 1"]),
        (
            "aggregator: {http: \"0.0.0.0:9640\"}\n",
            ["aggregator.http", "0.0.0.0:9640", "loopback"],
        ),
    ] {
        std::fs::write(&config, yaml)?;
        for (program, subcommand) in PROGRAMS {
            expect_line(with_config(program, subcommand, &config)?, 2, &parts)?;
        }
        for program in ["sonde-aggregator", "sonde-collector"] {
            expect_line(with_config(program, "check-config", &config)?, 2, &parts)?;
        }
    }
    Ok(())
}

#[test]
fn a_bad_variable_is_named() -> Result<()> {
    for (program, subcommand) in PROGRAMS {
        let mut command = command(program)?;
        command.arg(subcommand).env("SONDE_COLLECTOR_INTERVAL", "15");
        expect_line(command, 2, &["SONDE_COLLECTOR_INTERVAL", "`15`", "15s"])?;
    }
    Ok(())
}

#[test]
fn a_good_configuration_passes_the_check() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "pods: {include_host: false}\n")?;
    for program in ["sonde-aggregator", "sonde-collector"] {
        let (code, _, stderr) = output(with_config(program, "check-config", &config)?)?;
        ensure!(code == Some(0), "{program}: {code:?}: {stderr}");
    }
    Ok(())
}

/// Port in use: the address is in the one line. The other ports are free.
#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let Some(lab) = Lab::for_test("ports") else {
        return Ok(());
    };
    let site = Site::new(&lab, "")?;
    for address in [site.http, site.grpc] {
        let _taken = TcpListener::bind(address)?;
        let mut aggregator = site.spawn_aggregator()?;
        ends_with_one_line(&mut aggregator, &[&address.to_string(), "in use"])?;
        std::fs::remove_file(site.path().join("aggregator.log"))?;
    }
    let _taken = TcpListener::bind(site.collector_http)?;
    let mut collector = site.spawn_collector()?;
    ends_with_one_line(&mut collector, &[&site.collector_http.to_string(), "in use"])
}

/// What a program says last is why it ended; before that may be its log.
fn last_line(stderr: &str) -> &str {
    stderr.lines().last().unwrap_or_default()
}

fn ends_with_one_line(process: &mut Process, parts: &[&str]) -> Result<()> {
    let status = process.wait()?;
    let log = process.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    let line = last_line(&log);
    for part in parts {
        ensure!(line.to_lowercase().contains(part), "expected {part:?} in: {line}");
    }
    Ok(())
}

/// The aggregator serves without a database that takes batches, and says why it is not ready.
fn is_not_ready(site: &Site, aggregator: &mut Process, why: &str) -> Result<()> {
    site.until("the reason on /-/ready", || {
        if let Some(status) = aggregator.ended()? {
            bail!("it ended, {status}: {}", aggregator.log());
        }
        Ok(match http::get(site.http, "/-/ready", &[]) {
            Ok(response) if response.status == 503 && response.body.contains(why) => Ok(()),
            Ok(response) => Err(format!("{}: {}", response.status, response.body)),
            Err(error) => Err(format!("{error:#}")),
        })
    })?;
    ensure!(aggregator.log().contains(why), "{}", aggregator.log());
    ensure!(aggregator.terminate()?.success(), "{}", aggregator.log());
    Ok(())
}

#[test]
fn a_database_that_refuses_is_named_and_waited_for() -> Result<()> {
    let Some(lab) = Lab::for_test("database") else {
        return Ok(());
    };
    let site = Site::new(&lab, "")?;
    let mut command = command("sonde-aggregator")?;
    // Port 1 of loopback: nobody listens there.
    command
        .args(["serve", "--database-url", "postgres://sonde:secret@127.0.0.1:1/sonde"])
        .env("SONDE_AGGREGATOR_HTTP", site.http.to_string())
        .env("SONDE_AGGREGATOR_GRPC", site.grpc.to_string());
    let mut aggregator = Process::start(&lab, "sonde-aggregator", command, &site.path().join("aggregator.log"))?;
    is_not_ready(&site, &mut aggregator, "127.0.0.1:1")?;
    let log = aggregator.log();
    ensure!(!log.contains("secret"), "the password is in the log: {log}");
    Ok(())
}

/// `sonde up` makes a system, SIGTERM ends it without a trace, and it starts again on its data. Then its data directory is
/// made to look like one of a PostgreSQL that is not here, and like one of a newer Sonde.
#[test]
fn the_whole_system_ends_on_sigterm_starts_again_and_refuses_a_directory_of_another_version() -> Result<()> {
    let Some(lab) = Lab::for_test("up") else { return Ok(()) };
    let site = Site::new(&lab, "")?;
    let pod = lab.pod("up", "server")?;
    for _ in 0..2 {
        let mut up = site.up()?;
        site.await_pods(&[&pod])?;
        ensure!(
            processes_below(&site)?.len() >= 3,
            "too few processes: {:?}",
            processes_below(&site)?
        );
        let status = up.terminate()?;
        ensure!(status.success(), "{status}: {}", up.log());
        ensure!(
            processes_below(&site)?.is_empty(),
            "left: {:?}",
            processes_below(&site)?
        );
    }

    let mut aggregator = site.aggregator()?;
    site.sql(
        "insert into sonde_store.migrations (version, description, installed_on, success, checksum, execution_time) \
         values (9999, 'from the future', now(), true, '', 0)",
    )?;
    ensure!(aggregator.terminate()?.success(), "{}", aggregator.log());
    std::fs::remove_file(site.path().join("aggregator.log"))?;
    is_not_ready(&site, &mut site.spawn_aggregator()?, "9999")?;

    std::fs::remove_file(site.path().join("aggregator.log"))?;
    let version = site.data_dir().join("aggregator/postgres/data/PG_VERSION");
    ensure!(version.exists(), "{}", version.display());
    std::fs::write(&version, "8\n")?;
    ends_with_one_line(&mut site.spawn_aggregator()?, &["postgresql 8"])
}

/// Command lines of processes that have the site's folder in them or work in it.
fn processes_below(site: &Site) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let below =
            |link: &str| std::fs::read_link(path.join(link)).is_ok_and(|target| target.starts_with(site.path()));
        if line.contains(&site.path().display().to_string()) || below("cwd") {
            found.push(line);
        }
    }
    Ok(found)
}

#[test]
fn the_tests_would_notice_a_missing_program() {
    let error = sonde_e2e::process::binary("no-such-program")
        .context("lookup")
        .unwrap_err();
    assert!(format!("{error:#}").contains("make build"), "{error:#}");
}
