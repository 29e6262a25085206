//! Kernel addresses to names, from /proc/kallsyms, modules and compiled BPF programs included.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Farther than this from the symbol before it, an address belongs to something that the table does not have.
const LONGEST_FUNCTION: u64 = 1 << 20;
/// Modules come and go: an address without a name is worth another look, but not each time.
const RELOAD_AFTER: Duration = Duration::from_secs(30);
/// Names that were made once are kept, up to so many.
const CACHE: usize = 16_384;

/// Text symbols, sorted by address. Names lie one after another in one string: a table of 130,000 takes 5 MB.
#[derive(Debug, Default)]
pub(super) struct Table {
    symbols: Vec<Entry>,
    names: String,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// In `names`.
    start: u32,
    len: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SymbolsError {
    #[error("{0}")]
    Unreadable(String),
    #[error("kallsyms hides addresses: needs CAP_SYSLOG, and kernel.kptr_restrict below 2")]
    Hidden,
    #[error("kallsyms has no functions")]
    Empty,
}

impl Table {
    /// Lines are `address type name [module]`; types t and w are code. A broken line is none.
    pub(super) fn parse(mut text: impl BufRead) -> Result<Self, SymbolsError> {
        let mut table = Self::default();
        let mut hidden = 0usize;
        let mut line = Vec::new();
        // Line by line: the whole text takes some 10 MB, which would stay with the process.
        loop {
            line.clear();
            match text.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => hidden += usize::from(table.take(&line) == Some(0)),
                Err(error) => return Err(SymbolsError::Unreadable(error.to_string())),
            }
        }
        if table.symbols.is_empty() {
            return Err(if hidden > 0 {
                SymbolsError::Hidden
            } else {
                SymbolsError::Empty
            });
        }
        // Of several names for one address the first is the one that the kernel shows too.
        table.symbols.sort_by_key(|symbol| symbol.address);
        table.symbols.dedup_by_key(|symbol| symbol.address);
        table.symbols.shrink_to_fit();
        table.names.shrink_to_fit();
        Ok(table)
    }

    /// The address of a line that names code; 0 where it is hidden.
    fn take(&mut self, line: &[u8]) -> Option<u64> {
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        if !matches!(kind, "t" | "T" | "w" | "W") {
            return None;
        }
        let address = u64::from_str_radix(address, 16).ok()?;
        if address != 0 {
            let start = u32::try_from(self.names.len()).ok()?;
            self.symbols.push(Entry {
                address,
                start,
                len: name.len() as u32,
            });
            self.names.push_str(name);
        }
        Some(address)
    }

    pub(super) fn len(&self) -> usize {
        self.symbols.len()
    }

    /// The function that holds the address, and how far into it.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let at = self
            .symbols
            .partition_point(|symbol| symbol.address <= address)
            .checked_sub(1)?;
        let Entry {
            address: begin,
            start,
            len,
        } = self.symbols[at];
        let name = self.names.get(start as usize..(start + len) as usize)?;
        let offset = address - begin;
        (offset < LONGEST_FUNCTION).then_some((name, offset))
    }
}

/// How many frames at a stack's beginning are the tracepoint's own.
pub(crate) fn tracing_frames(frames: &[Arc<str>]) -> usize {
    let is_tracing = |frame: &Arc<str>| TRACING.iter().any(|prefix| frame.starts_with(prefix));
    frames
        .iter()
        .take(TRACING_FRAMES)
        .rposition(is_tracing)
        .map_or(0, |last| last + 1)
}

const TRACING: [&str; 6] = [
    "bpf_prog_",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
    "bpf_trampoline_",
    "trace_",
];
/// The program itself has no name while the symbols are older than it.
const TRACING_FRAMES: usize = 6;

/// The running kernel's symbols, read when first needed and again when an address has no name.
pub(crate) struct Symbols {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    table: Result<Table, SymbolsError>,
    read_at: Instant,
    /// `symbol+0x1f` of addresses seen before.
    shown: HashMap<u64, Arc<str>>,
}

impl Symbols {
    pub(super) fn new(proc: &Path) -> Self {
        let path = proc.join("kallsyms");
        let state = State {
            table: read(&path),
            read_at: Instant::now(),
            shown: HashMap::new(),
        };
        Self {
            path,
            state: Mutex::new(state),
        }
    }

    /// Number of functions, or why there are none.
    pub(super) fn len(&self) -> Result<usize, String> {
        self.state
            .lock()
            .table
            .as_ref()
            .map(Table::len)
            .map_err(ToString::to_string)
    }

    /// The function at an address. `None`: it has no name, or names are not to be had.
    pub(super) fn function(&self, address: u64) -> Option<Arc<str>> {
        let shown = self.show(address);
        let (name, _) = shown.split_once('+')?;
        Some(Arc::from(name))
    }

    /// The frames of a stack, innermost first, without those of the tracepoint and the program themselves.
    pub(super) fn stack(&self, addresses: &[u64]) -> Vec<Arc<str>> {
        let mut frames: Vec<Arc<str>> = addresses.iter().map(|address| self.show(*address)).collect();
        frames.drain(..tracing_frames(&frames));
        frames
    }

    /// `symbol+0x1f`, or the address itself where it has no name.
    pub(super) fn show(&self, address: u64) -> Arc<str> {
        let state = &mut *self.state.lock();
        if let Some(known) = state.shown.get(&address) {
            return Arc::clone(known);
        }
        let mut found = state
            .table
            .as_ref()
            .ok()
            .and_then(|table| format_symbol(table, address));
        if found.is_none() && state.table.is_ok() && state.read_at.elapsed() >= RELOAD_AFTER {
            if let Ok(table) = read(&self.path) {
                state.table = Ok(table);
            }
            state.read_at = Instant::now();
            found = state
                .table
                .as_ref()
                .ok()
                .and_then(|table| format_symbol(table, address));
        }
        let Some(text) = found else {
            return format!("0x{address:x}").into();
        };
        if state.shown.len() >= CACHE {
            state.shown.clear();
        }
        let text: Arc<str> = text.into();
        state.shown.insert(address, Arc::clone(&text));
        text
    }
}

fn format_symbol(table: &Table, address: u64) -> Option<String> {
    table.find(address).map(|(name, offset)| format!("{name}+0x{offset:x}"))
}

fn read(path: &Path) -> Result<Table, SymbolsError> {
    let unreadable = |error| SymbolsError::Unreadable(format!("{}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    Table::parse(BufReader::with_capacity(1 << 16, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffffffff81000000 T _stext\n\
        ffffffff81000000 T _text\n\
        ffffffff81000200 t tcp_v4_rcv\n\
        ffffffff81000100 T ip_rcv\n\
        ffffffff82000000 D init_net\n\
        ffffffffc0001000 t nft_do_chain\t[nf_tables]\n\
        broken\n\
        xyz T nothing\n";

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let table = Table::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(table.find(0xffff_ffff_8100_0100), Some(("ip_rcv", 0)));
        assert_eq!(table.find(0xffff_ffff_8100_01ff), Some(("ip_rcv", 0xff)));
        assert_eq!(table.find(0xffff_ffff_8100_0231), Some(("tcp_v4_rcv", 0x31)));
        assert_eq!(
            table.find(0xffff_ffff_8100_0001),
            Some(("_stext", 1)),
            "the first name of an address"
        );
        assert_eq!(
            format_symbol(&table, 0xffff_ffff_c000_14f1).as_deref(),
            Some("nft_do_chain+0x4f1")
        );
    }

    #[test]
    fn an_address_far_from_any_function_has_no_name() {
        let table = Table::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(table.find(0x1000), None);
        assert_eq!(
            table.find(0xffff_ffff_b000_0000),
            None,
            "between the kernel and its modules"
        );
        assert_eq!(table.find(u64::MAX), None);
    }

    #[test]
    fn hidden_addresses_are_told_from_an_empty_file() {
        let hidden = "0000000000000000 T _stext\n0000000000000000 t ip_rcv\n";
        assert_eq!(Table::parse(hidden.as_bytes()).unwrap_err(), SymbolsError::Hidden);
        assert_eq!(Table::parse(&b""[..]).unwrap_err(), SymbolsError::Empty);
        assert_eq!(
            Table::parse(&b"ffffffff82000000 D init_net\n"[..]).unwrap_err(),
            SymbolsError::Empty
        );
    }

    #[test]
    fn without_names_an_address_shows_as_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let symbols = Symbols::new(dir.path());
        assert!(symbols.len().unwrap_err().contains("kallsyms"));
        assert_eq!(&*symbols.show(0xffff_ffff_8100_0231), "0xffffffff81000231");
        assert_eq!(symbols.function(0xffff_ffff_8100_0231), None);
    }

    #[test]
    fn functions_and_offsets_are_split() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kallsyms"), TEXT).unwrap();
        let symbols = Symbols::new(dir.path());
        assert_eq!(symbols.function(0xffff_ffff_8100_0231).as_deref(), Some("tcp_v4_rcv"));
        assert_eq!(&*symbols.show(0xffff_ffff_8100_0231), "tcp_v4_rcv+0x31");
    }
}
