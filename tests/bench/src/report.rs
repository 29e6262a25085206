//! The page of figures.

use std::fmt::Write as _;

pub(crate) struct Report {
    text: String,
}

impl Report {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu
            .lines()
            .find_map(|l| l.strip_prefix("model name"))
            .map_or("unknown", |l| l.trim_start_matches(['\t', ':', ' ']));
        let postgres = std::fs::read_dir("/usr/lib/postgresql")?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .max();
        let mut text = String::from("# Performance\n\nWritten by `make bench`.\n\n");
        writeln!(
            text,
            "Machine: {cores} cores ({model}), kernel {}, PostgreSQL {}. Programs, PostgreSQL and load share the cores; other work\n\
             may run beside it: read wall-clock figures as ratios within this page, CPU time and bytes as they are.",
            kernel.trim(),
            postgres.unwrap_or_default()
        )?;
        Ok(Self { text })
    }

    pub(crate) fn section(&mut self, title: &str, about: &str) {
        eprintln!("== {title}");
        let _ = write!(self.text, "\n## {title}\n\n{about}\n\n| what | figure |\n|---|---|\n");
    }

    pub(crate) fn row(&mut self, what: &str, figure: impl std::fmt::Display) {
        eprintln!("   {what}: {figure}");
        let _ = writeln!(self.text, "| {what} | {figure} |");
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// `1,234,567`.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
