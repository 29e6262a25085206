//! What cannot run says why in one line: code 2 for the configuration, 1 for everything else.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::fixture::{Program, command, directory, refusal};

#[test]
fn a_bad_configuration_is_code_2() {
    let dir = directory();
    let file = dir.path().join("sonde.yaml");
    fs::write(&file, "storage: {keep_rowss: 3d}\n").unwrap();
    let file = file.display().to_string();
    let (code, said) = refusal(&mut command(dir.path(), &["check-config", "--config", &file]));
    assert_eq!(code, Some(2));
    assert!(said.contains("keep_rowss") && said.contains("keep_rows"), "{said}");

    let (code, said) = refusal(&mut command(
        dir.path(),
        &["serve", "--database-url", "mysql://root@localhost/x"],
    ));
    assert_eq!(code, Some(2));
    assert!(
        said.contains("storage.database_url") && said.contains("expected `postgres://"),
        "{said}"
    );
    assert!(!dir.path().join("postgres").exists());
}

#[test]
fn a_good_configuration_is_code_0() {
    let dir = directory();
    assert!(
        command(dir.path(), &["check-config"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let dir = directory();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (variable, key) in [
        ("SONDE_AGGREGATOR_HTTP", "aggregator.http"),
        ("SONDE_AGGREGATOR_GRPC", "aggregator.grpc"),
    ] {
        let (code, said) = refusal(command(dir.path(), &["serve"]).env(variable, &address));
        assert_eq!(code, Some(1));
        assert!(
            said.starts_with(&format!("sonde-aggregator: {key}: cannot listen on {address}: ")),
            "{said}"
        );
    }
    assert!(
        !dir.path().join("postgres").exists(),
        "nothing is made before the doors are open"
    );
}

#[test]
fn a_wrong_database_url_is_code_2_wherever_it_is_written() {
    let dir = directory();
    let url = "postgres://sonde:secret@h1,h2:x/sonde";
    let file = dir.path().join("sonde.yaml");
    fs::write(&file, format!("storage: {{database_url: '{url}'}}\n")).unwrap();
    let file = file.display().to_string();
    for what in ["serve", "migrate", "check-config"] {
        let by_environment = refusal(command(dir.path(), &[what]).env("SONDE_STORAGE_DATABASE_URL", url));
        let by_argument = refusal(&mut command(dir.path(), &[what, "--database-url", url]));
        let by_file = refusal(&mut command(dir.path(), &[what, "--config", &file]));
        for (code, said) in [by_environment, by_argument, by_file] {
            assert_eq!(code, Some(2), "{said}");
            let expected =
                "sonde-aggregator: storage.database_url: host `h2:x`: invalid port number; expected `postgres://";
            assert!(said.starts_with(expected) && !said.contains("secret"), "{said}");
        }
    }
    let good = "postgres://sonde@h1,h2:5433/sonde?target_session_attrs=read-write";
    let mut checked = command(dir.path(), &["check-config", "--database-url", good]);
    assert!(checked.output().unwrap().status.success());
}

#[test]
fn a_database_that_refuses_is_named_and_waited_for() {
    let dir = directory();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://sonde:secret@127.0.0.1:{port}/sonde");
    let (code, said) = refusal(&mut command(dir.path(), &["migrate", "--database-url", &url]));
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with(&format!("sonde-aggregator: database 127.0.0.1:{port}/sonde: ")),
        "{said}"
    );
    assert!(said.contains("refused") && !said.contains("secret"), "{said}");

    let program = Program::spawn(dir.path(), &mut command(dir.path(), &["serve", "--database-url", &url]));
    let said = program.ready(503);
    assert!(said.starts_with("not ready: ") && said.contains("refused"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(program.get("/-/healthy").0, 200);
    assert_eq!(program.get("/").0, 200);
    assert_eq!(program.get("/federate?match[]=up").0, 200);
    let (status, said) = program.get("/api/v1/nodes");
    assert_eq!(status, 503, "{said}");
    let (_, metrics) = program.get("/metrics");
    for line in [
        "sonde_aggregator_database_up 0",
        "sonde_aggregator_database_problem{problem=\"away\"} 1",
        "sonde_aggregator_database_problem{problem=\"full\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
    program.stop();
}

#[test]
fn a_database_that_is_not_there_is_named_and_taken_when_it_is_made() {
    let (dir, other) = (directory(), directory());
    let first = Program::start(dir.path());
    let socket = dir
        .path()
        .join("postgres/run")
        .display()
        .to_string()
        .replace('/', "%2F");
    let url = format!("postgres://sonde@{socket}/elsewhere");
    let missing = "database \"elsewhere\" does not exist (SQLSTATE 3D000)";
    let (code, said) =
        refusal(command(dir.path(), &["migrate", "--database-url", &url]).env("SONDE_STORAGE_RUN_AS", ""));
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("/elsewhere: {missing}")), "{said}");
    let second = Program::spawn(
        other.path(),
        &mut command(other.path(), &["serve", "--database-url", &url]),
    );
    assert_eq!(second.ready(503), format!("not ready: {missing}\n"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let make = sqlx::query("create database elsewhere");
    runtime
        .block_on(async { make.execute(&first.database()).await })
        .unwrap();
    second.ready(200);
    assert_eq!(second.get("/api/v1/nodes").0, 200);
    second.stop();
    first.stop();
}

#[test]
fn a_data_directory_of_another_version_is_left_alone() {
    let dir = directory();
    let data = dir.path().join("postgres/data");
    fs::create_dir_all(&data).unwrap();
    fs::set_permissions(data.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
    fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    let (code, said) = refusal(&mut command(dir.path(), &["serve"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("was made by PostgreSQL 9, but only "), "{said}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
}

#[test]
fn two_aggregators_do_not_share_a_data_directory() {
    let dir = directory();
    let first = Program::start(dir.path());
    let (code, said) = refusal(&mut command(dir.path(), &["serve"]));
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&format!("in use by another aggregator (process {})", first.pid())),
        "{said}"
    );
    assert_eq!(first.get("/-/ready").0, 200);
    first.stop();
}

#[test]
fn a_directory_that_its_user_may_not_pass_is_named() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root becomes another user");
        return;
    }
    let dir = directory();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let (code, said) = refusal(&mut command(&closed.join("deep/data"), &["serve"]));
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&format!(
            "may not pass through directory {} to reach ",
            closed.display()
        )),
        "{said}"
    );
}

#[test]
fn a_user_that_does_not_exist_is_named() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root becomes another user");
        return;
    }
    let dir = directory();
    let (code, said) = refusal(command(dir.path(), &["serve"]).env("SONDE_STORAGE_RUN_AS", "nosuchuser"));
    assert_eq!(code, Some(1));
    assert_eq!(said, "sonde-aggregator: storage.run_as: there is no user `nosuchuser`");
}

#[test]
fn a_cluster_that_has_to_be_there_and_is_not_is_named_with_its_key() {
    let dir = directory();
    let on = [("SONDE_KUBERNETES_ENABLED", "on")];
    let (code, said) = refusal(
        command(dir.path(), &["serve"])
            .envs(on)
            .env_remove("KUBERNETES_SERVICE_HOST"),
    );
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("sonde-aggregator: kubernetes.enabled: `on`: expected"),
        "{said}"
    );
    let given = [("SONDE_KUBERNETES_KUBECONFIG", "/nonexistent/config")];
    let (code, said) = refusal(command(dir.path(), &["serve"]).envs(given));
    assert_eq!(code, Some(1));
    let expected = "sonde-aggregator: kubernetes.kubeconfig: `/nonexistent/config`: ";
    assert!(said.starts_with(expected) && said.contains("No such file"), "{said}");
    assert!(!dir.path().join("postgres/data").exists(), "no database is made before");
}

#[test]
fn a_cluster_that_does_not_answer_is_no_reason_not_to_start() {
    let dir = directory();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = dir.path().join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}],\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}'}}}}], users: [{{name: u, user: {{}}}}]}}\n"
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let given = [("SONDE_KUBERNETES_KUBECONFIG", &file)];
    let program = Program::spawn(dir.path(), command(dir.path(), &["serve"]).envs(given));
    let begun = std::time::Instant::now();
    let said = loop {
        let (status, said) = program.get("/api/v1/kubernetes");
        assert_eq!(status, 200, "{said}");
        if said.contains("error") {
            break said;
        }
        assert!(begun.elapsed().as_secs() < 30, "{said}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(said.contains("leader") && said.contains("refused"), "{said}");
    assert_eq!(program.get("/-/ready").0, 200);
    program.stop();
}
