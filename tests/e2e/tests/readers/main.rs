//! What others read of one running system with real traffic and real faults: Grafana's dashboards, KubeSkoop's, rules of
//! Prometheus, tools that read the OpenAPI document.

mod dashboards;
mod kubeskoop;
mod openapi;
mod reader;
mod rules;
mod system;
mod traffic;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use sonde_lab::Lab;

use system::System;

type Test = fn(&System) -> Result<()>;

/// Started by the first test that needs it; what went wrong then is said once.
#[derive(Default)]
struct Shared(Mutex<Option<Option<System>>>);

impl Shared {
    fn run(&self, test: Test) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_none() {
            *state = Some(None);
            *state = Some(Some(System::start()?));
        }
        match &*state {
            Some(Some(system)) => test(system),
            _ => anyhow::bail!("the system did not start: see the test that failed first"),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let shared = Arc::new(Shared::default());
    let tests: [(&str, Test); 8] = [
        ("the_reader_role_reads_views_alone_and_not_for_long", reader::check),
        ("every_variable_of_every_dashboard_has_choices", dashboards::variables),
        ("every_panel_of_every_dashboard_has_rows", dashboards::panels),
        ("every_panel_takes_every_kind_of_choice", dashboards::choices),
        ("annotations_show_gaps", dashboards::annotations),
        ("kubeskoops_dashboards_run_unchanged", kubeskoop::check),
        ("rules_are_evaluated_and_know_every_metric", rules::check),
        ("the_interface_is_what_its_document_says", openapi::check),
    ];
    let trials = tests.map(|(name, test)| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || {
            if let Err(why) = Lab::available() {
                println!("SKIPPED: {why}");
                return Ok(());
            }
            shared.run(test).map_err(|error| format!("{error:#}").into())
        })
    });
    let mut trials: Vec<Trial> = trials.into();
    trials.push(Trial::test("rules_pass_their_own_tests", || {
        rules::tests().map_err(|error| format!("{error:#}").into())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let state = Arc::into_inner(shared).and_then(|s| s.0.into_inner().unwrap_or_else(PoisonError::into_inner));
    if let Some(Some(system)) = state {
        system.end(conclusion.has_failed());
    }
    conclusion.exit_code()
}
