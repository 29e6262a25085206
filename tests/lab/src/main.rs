//! Makes a fault by hand: `sonde-lab list`, `sonde-lab run FAULT`, `sonde-lab sweep`.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use sonde_lab::faults::{self, Fault, Signal};
use sonde_lab::{Family, Lab, healthy};

#[derive(Parser)]
#[command(
    name = "sonde-lab",
    about = "Makes network faults in namespaces of their own",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The faults, what the kernel does in each, and what shows it.
    List,
    /// Makes a fault (or `healthy` traffic) and says what the kernel counted.
    Run {
        fault: String,
        #[arg(long, value_enum, default_value_t = Which::Both)]
        family: Which,
        /// Packets or connections for each family.
        #[arg(long, default_value_t = 10)]
        count: u64,
        /// Waits for Enter between the making of the pods and the fault.
        #[arg(long)]
        wait: bool,
        /// Leaves the pods in place; `sonde-lab sweep` takes them away.
        #[arg(long)]
        keep: bool,
    },
    /// Takes away what runs left, also with --keep.
    Sweep,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    V4,
    V6,
    Both,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::List => {
            list();
            Ok(())
        }
        Command::Run {
            fault,
            family,
            count,
            wait,
            keep,
        } => run(&fault, family, count, wait, keep),
        Command::Sweep => {
            for prefix in sonde_lab::sweep(true)? {
                println!("swept {prefix}");
            }
            Ok(())
        }
    }
}

fn list() {
    for fault in faults::ALL {
        println!("{}\n    {}", fault.name, fault.about);
        match fault.signal {
            Signal::Event(drop) => println!(
                "    shows as: PACKETLOSS {}, {}, at the {:?}",
                drop.reasons.join(" or "),
                drop.direction,
                drop.place
            ),
            Signal::Counter { place, v4, v6 } => println!("    shows as: counter {v4} / {v6} of the {place:?}"),
        }
    }
    println!("healthy\n    Traffic that must give no event: {}", {
        let names: Vec<_> = healthy::ALL.iter().map(|habit| habit.name).collect();
        names.join(", ")
    });
}

fn run(name: &str, family: Which, count: u64, wait: bool, keep: bool) -> Result<()> {
    if let Err(why) = Lab::available() {
        bail!("the lab cannot work here: {why}");
    }
    let families: &[Family] = match family {
        Which::V4 => &[Family::V4],
        Which::V6 => &[Family::V6],
        Which::Both => &Family::BOTH,
    };
    let lab = Lab::new("by hand")?;
    if keep {
        lab.keep()?;
    }
    if name == "healthy" {
        let (client, server) = (lab.pod("healthy", "client")?, lab.pod("healthy", "server")?);
        lab.link(&client, &server)?;
        println!("pods: {client}, {server}");
        pause(wait)?;
        healthy::healthy(&client, &server)?;
        println!("{} kinds of healthy traffic went through", healthy::ALL.len());
        return Ok(());
    }
    let fault = Fault::find(name).with_context(|| format!("no fault `{name}`: `sonde-lab list` names them"))?;
    let scene = fault.scene(&lab, "fault")?;
    let pods: Vec<String> = scene.pods().iter().map(ToString::to_string).collect();
    println!("pods: {}", pods.join(", "));
    pause(wait)?;
    for family in families {
        let injected = scene.inject(*family, count)?;
        println!(
            "{family}: {}: sent {}, dropped {} in {} (says {})",
            injected.flow, injected.sent, injected.dropped, injected.place, injected.source
        );
    }
    Ok(())
}

fn pause(wait: bool) -> Result<()> {
    if wait {
        println!("press Enter to go on");
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}
