//! What runs in the virtual machine.

mod init;

use anyhow::{Context as _, Result};

use crate::Line;
use init::Voice;

/// Never comes back: the machine is switched off.
pub fn main() {
    if !init::is_first_process() {
        eprintln!("error: sonde-guest is the first process of a virtual machine, see tests/kernels");
        std::process::exit(2);
    }
    let said = init::start().and_then(|voice| {
        let result = std::panic::catch_unwind(|| examine(&voice));
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("the guest's program panicked: see the console")));
        match result {
            Ok(()) => voice.say(&Line::End),
            Err(error) => voice.say(&Line::Broken {
                why: format!("{error:#}"),
            }),
        }
    });
    if let Err(error) = said {
        println!("guest: {error:#}");
    }
    init::switch_off();
}

fn examine(voice: &Voice) -> Result<()> {
    voice.say(&Line::Up {
        release: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
    })?;
    let output = std::process::Command::new("/sonde-collector")
        .args(["doctor", "-o", "json"])
        .env("NODE_NAME", "guest")
        .output()?;
    print!("{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&output.stdout).context("doctor")?;
    voice.say(&Line::Doctor { report })
}
