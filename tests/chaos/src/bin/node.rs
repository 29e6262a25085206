//! A node of a chaos run: see `sonde_chaos::node`.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    sonde_chaos::node::main(sonde_chaos::node::Arguments::parse())
}
