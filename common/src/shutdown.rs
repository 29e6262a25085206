//! SIGTERM and Ctrl-C end a process in order: every task hears it through one watch channel.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Clone it into each task; `recv` resolves once the process is to end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Ends all tasks that hold the matching [`Shutdown`].
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<bool>);

pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    pub async fn recv(&mut self) {
        // An error means that the trigger is gone: nobody could end us any more, so end.
        let _ = self.0.wait_for(|fired| *fired).await;
    }
    pub fn is_fired(&self) -> bool {
        *self.0.borrow()
    }
}

/// Fires on SIGTERM or SIGINT; a second signal ends the process at once.
pub fn on_signals(trigger: Trigger) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if round == 0 {
                trigger.fire();
            } else {
                tracing::warn!("second signal, ending at once");
                std::process::exit(130);
            }
        }
    });
    Ok(())
}
