//! The system that all tests of this program share, started by the first that needs it.

use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use sonde_e2e::process::Process;
use sonde_e2e::site::Site;
use sonde_lab::{Lab, Pod};

#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running(Box<System>),
    /// Said once by the test that tried; the others need not try again.
    Broken,
}

struct System {
    site: std::sync::Arc<Site>,
    barrier: (Pod, Pod),
    up: Process,
}

/// What a test gets.
pub(crate) struct Running {
    pub(crate) site: std::sync::Arc<Site>,
    barrier: (Pod, Pod),
}

impl Running {
    /// All that has happened so far has come through.
    pub(crate) fn settle(&self) -> Result<()> {
        self.site.barrier(&self.barrier.0, &self.barrier.1)
    }
}

impl Shared {
    pub(crate) fn running(&self) -> Result<Running> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let State::Idle = *state {
            *state = State::Broken;
            *state = State::Running(Box::new(System::start()?));
        }
        match &*state {
            State::Running(system) => Ok(Running {
                site: std::sync::Arc::clone(&system.site),
                barrier: system.barrier.clone(),
            }),
            State::Idle | State::Broken => bail!("the system did not start: see the test that failed first"),
        }
    }

    /// Ends the system; shows its logs when something failed.
    pub(crate) fn end(self, failed: bool) {
        let state = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let State::Running(mut system) = state {
            let ended = system.up.terminate();
            if failed || !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("sonde up: {ended:?}\n{}", system.site.logs());
            }
        }
    }
}

impl System {
    fn start() -> Result<Self> {
        let lab = Lab::new("e2e faults")?;
        let site = Site::new(&lab, "rate: 1000, burst: 1000")?;
        let up = site.up()?;
        let (client, server) = (lab.pod("barrier", "client")?, lab.pod("barrier", "server")?);
        lab.link(&client, &server)?;
        site.await_pods(&[&client, &server]).with_context(|| site.logs())?;
        Ok(Self {
            site: std::sync::Arc::new(site),
            barrier: (client, server),
            up,
        })
    }
}
