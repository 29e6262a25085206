//! Compiles the Container Runtime Interface, and builds the kernel programs (collector-ebpf) and leaves the object where
//! `kernel::load` embeds it from.
//!
//! They are for another target, with another standard library, so a cargo of their own builds them, in
//! collector-ebpf/target: once for all profiles, and again only when their sources change. By hand:
//! `RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Clinker=bpf-linker -Clink-arg=--btf" cargo build --release --target bpfel-unknown-none
//! -Zbuild-std=core` in collector-ebpf.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    if let Err(error) = runtime_interface() {
        println!("cargo::error=the Container Runtime Interface cannot be compiled: {error}");
        std::process::exit(1);
    }
    // Asked now and not when this was compiled: a target directory may be copied to another checkout.
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let source = here.join("../collector-ebpf");
    for input in ["src", "Cargo.toml", "Cargo.lock", "common/src", "common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", source.join(input).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("sonde-ebpf.o");
    let result = build(&source).and_then(|object| {
        std::fs::copy(&object, &out)
            .map_err(|error| format!("{}: {error}", object.display()))
            .map(drop)
    });
    if let Err(why) = result {
        println!("cargo::error=the eBPF programs cannot be built: {why}");
        std::process::exit(1);
    }
}

/// Without a protoc binary: protox is a Protobuf compiler in Rust. The server's side, and the calls that make pods, are
/// for tests.
fn runtime_interface() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    for (proto, folder) in [("cri/api.proto", "cri"), ("tests/cri/driver.proto", "cri-driver")] {
        println!("cargo::rerun-if-changed={proto}");
        let out = out.join(folder);
        std::fs::create_dir_all(&out)?;
        let descriptors = protox::compile([proto], ["."])?;
        tonic_prost_build::configure()
            .build_server(folder == "cri")
            .out_dir(out)
            .compile_fds(descriptors)?;
    }
    Ok(())
}

/// The object, or one line that says what is missing and how to get it.
fn build(source: &Path) -> Result<PathBuf, String> {
    let linker =
        bpf_linker().ok_or("bpf-linker is neither on the PATH nor in cargo's bin directory: run `make setup`")?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    require_core_source(&rustc)?;
    let target_dir = source.join("target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(source)
        .args(["build", "--release", "--target", TARGET, "-Zbuild-std=core"]);
    cargo.arg("--target-dir").arg(&target_dir);
    // What cargo and clippy set for this crate is wrong for that one.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| is_ours(name) && !is_the_users(name)) {
            cargo.env_remove(name);
        }
    }
    cargo.env("RUSTC", rustc);
    // `-Zbuild-std`, and the assembly in the programs, are not stable yet.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    let flags = [format!("-Clinker={}", linker.display()), "-Clink-arg=--btf".to_owned()];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let output = cargo
        .output()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("cargo {} in {}", output.status, source.display()));
    }
    Ok(target_dir.join(TARGET).join("release/sonde-ebpf"))
}

fn bpf_linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let directories = std::env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    directories
        .map(|directory| directory.join("bpf-linker"))
        .find(|program| program.is_file())
}

fn require_core_source(rustc: &std::ffi::OsStr) -> Result<(), String> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output();
    let output = output.map_err(|error| format!("rustc cannot be run: {error}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.is_file() {
        return Ok(());
    }
    Err(format!(
        "the compiler has no source of `core` ({} does not exist): run `make setup`",
        core.display()
    ))
}

/// Variables that cargo, clippy or miri set while they build this crate.
fn is_ours(name: &str) -> bool {
    const EXACT: [&str; 11] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTC_LINKER",
        "OUT_DIR",
        "TARGET",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
    ];
    EXACT.contains(&name) || name.starts_with("CARGO_") || name.starts_with("CLIPPY_")
}

/// Where cargo gets crates from is the user's to say, also for that build.
fn is_the_users(name: &str) -> bool {
    let prefixes = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRY",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}
