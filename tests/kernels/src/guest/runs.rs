//! Runs of the collector: each with other ways to hook into the kernel.

/// One run of the collector.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub name: &'static str,
    /// Of the key `kernel.rungs`.
    pub rungs: &'static [&'static str],
    /// The kernel's BTF is hidden, and given as a file.
    pub btf_file: bool,
}

/// As it comes, then each rung that is not the best anyway, then as on a kernel without BTF.
pub const RUNS: [Run; 6] = [
    Run {
        name: "default",
        rungs: &["tp_btf", "raw_tracepoint", "fentry", "kprobe", "tcx", "clsact"],
        btf_file: false,
    },
    Run {
        name: "raw_tracepoint",
        rungs: &["raw_tracepoint", "clsact"],
        btf_file: false,
    },
    Run {
        name: "fentry",
        rungs: &["fentry"],
        btf_file: false,
    },
    Run {
        name: "kprobe",
        rungs: &["kprobe"],
        btf_file: false,
    },
    // For what adds to tracepoints by functions.
    Run {
        name: "tp_btf+kprobe",
        rungs: &["tp_btf", "kprobe"],
        btf_file: false,
    },
    Run {
        name: "btf_path",
        rungs: &["tp_btf", "raw_tracepoint", "fentry", "kprobe", "tcx", "clsact"],
        btf_file: true,
    },
];
