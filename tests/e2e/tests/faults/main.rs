//! One running `sonde up`, many faults, each in pods of its own.

mod cli;
mod drops;
mod federation;
mod healthy;
mod pages;
mod reuse;
mod shared;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use sonde_lab::Lab;
use sonde_lab::faults::{self, Signal};

use shared::Shared;

type Simple = fn(&Shared) -> anyhow::Result<()>;
type Test = Box<dyn Fn(&Shared) -> anyhow::Result<()> + Send>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let shared = Arc::new(Shared::default());
    let trial = |name: String, test: Test| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || {
            if let Err(why) = Lab::available() {
                println!("SKIPPED: {why}");
                return Ok(());
            }
            test(&shared).map_err(|error| format!("{error:#}").into())
        })
    };
    let mut trials = Vec::new();
    for fault in faults::ALL {
        let name = match fault.signal {
            Signal::Event(_) => format!("{}_gives_one_event_for_each_packet_at_every_door", fault.name),
            Signal::Counter { .. } => format!("{}_moves_its_counter_and_gives_no_event", fault.name),
        };
        trials.push(trial(
            name.replace('-', "_"),
            Box::new(move |shared| drops::check(shared, fault)),
        ));
    }
    let others: [(&str, Simple); 8] = [
        ("healthy_traffic_gives_no_event", healthy::check),
        ("promtool_accepts_every_metrics_page", pages::promtool),
        ("a_real_prometheus_has_each_value_type_time_and_end", federation::check),
        ("promtool_accepts_the_scrape_examples", federation::promtool),
        ("the_command_line_follows_and_searches", cli::check),
        ("the_web_page_is_served", pages::web_page),
        ("late_events_of_a_deleted_pod_keep_its_name", reuse::late_events),
        ("a_pod_in_a_reused_namespace_inherits_nothing", reuse::reused_inode),
    ];
    for (name, test) in others {
        trials.push(trial(name.to_owned(), Box::new(test)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // No test runs any more: this is the last handle, and what it holds ends in order.
    if let Some(shared) = Arc::into_inner(shared) {
        shared.end(conclusion.has_failed());
    }
    conclusion.exit_code()
}
