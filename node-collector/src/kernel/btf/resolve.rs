//! What the programs want to know of the running kernel's layout, answered from BTF.

use sonde_ebpf_common::fields::{ArgumentDecl, Field, FieldDecl};

use super::raw::{Btf, Kind, Type, TypeId};

/// Why there is none. Said by `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Absent {
    #[error("{structure} has no member {path}")]
    NoMember {
        structure: &'static str,
        path: &'static str,
    },
    #[error("{structure}.{path} has {have} bytes, expected {want}")]
    Size {
        structure: &'static str,
        path: &'static str,
        have: u32,
        want: u32,
    },
    #[error("{structure}.{path} is a bit field that does not fit into {want} bytes")]
    BitField {
        structure: &'static str,
        path: &'static str,
        want: u32,
    },
    #[error("no tracepoint {0}")]
    NoTracepoint(&'static str),
    #[error("no function {0}")]
    NoFunction(&'static str),
    #[error("{of} has no argument {argument}")]
    NoArgument { of: &'static str, argument: &'static str },
}

/// The first of the field's paths that this kernel has and that fits.
pub(crate) fn resolve_field(btf: &Btf, decl: &FieldDecl) -> Result<Field, Absent> {
    let mut problem = None;
    for path in decl.paths {
        match resolve_path(btf, decl, path) {
            Ok(field) => return Ok(field),
            // A member of the wrong size says more than that another path is not there.
            Err(absent) if problem.is_none() || !matches!(absent, Absent::NoMember { .. }) => problem = Some(absent),
            Err(_) => {}
        }
    }
    Err(problem.unwrap_or(Absent::NoMember {
        structure: decl.structure,
        path: "",
    }))
}

fn resolve_path(btf: &Btf, decl: &FieldDecl, path: &'static str) -> Result<Field, Absent> {
    let (structure, want) = (decl.structure, decl.size);
    let found = btf
        .member(structure, path)
        .ok_or(Absent::NoMember { structure, path })?;
    let bit_field = Absent::BitField { structure, path, want };
    let (offset, rest) = (found.bit_offset / 8, found.bit_offset % 8);
    if found.width != 0 {
        // No kernel this runs on has the other byte order, in which bits are counted from the other end.
        if rest + found.width > want * 8 {
            return Err(bit_field);
        }
        return Ok(Field {
            offset,
            shift: rest as u8,
            width: found.width as u8,
            pad: 0,
        });
    }
    let have = btf.size_of(found.type_id).unwrap_or(0);
    if have != want {
        return Err(Absent::Size {
            structure,
            path,
            have,
            want,
        });
    }
    if rest != 0 {
        return Err(bit_field);
    }
    Ok(Field::at(offset))
}

/// The argument's number, by name where BTF has the names, else by type: the prototype of a tracepoint that the
/// verifier goes by (`btf_trace_NAME`) has types only.
pub(crate) fn resolve_argument(btf: &Btf, decl: &ArgumentDecl) -> Result<u32, Absent> {
    let absent = Absent::NoArgument {
        of: decl.of,
        argument: decl.name,
    };
    let (types, names) = match decl.of.strip_suffix("()") {
        Some(function) => {
            let (names, types) = btf.function(function).ok_or(Absent::NoFunction(decl.of))?;
            (types, Some(names))
        }
        None => (
            btf.tracepoint(decl.of).ok_or(Absent::NoTracepoint(decl.of))?,
            btf.tracepoint_names(decl.of),
        ),
    };
    if let Some(names) = names.filter(|names| names.len() == types.len()) {
        return names
            .iter()
            // Since 6.13 the verifier takes the ending for "may be NULL".
            .position(|name| name.strip_suffix("__nullable").unwrap_or(name) == decl.name)
            .map(|at| at as u32)
            .ok_or(absent);
    }
    let fits = |id: &TypeId| btf.is_named(*id, decl.type_name);
    // Of several plain numbers nothing tells which one it is.
    let numbers = types.iter().filter(|id| fits(id) && btf.is_number(**id)).count();
    if numbers > 1 {
        return Err(absent);
    }
    types.iter().position(fits).map(|at| at as u32).ok_or(absent)
}

impl Btf {
    /// Types of a tracepoint's arguments. `None`: the kernel has no such tracepoint.
    pub(crate) fn tracepoint(&self, name: &str) -> Option<Vec<TypeId>> {
        let (_, typedef) = self.find(Kind::Typedef, &format!("btf_trace_{name}"))?;
        let (_, pointer) = self.strip(typedef.size_or_type)?;
        let (_, proto) = self.strip(pointer.size_or_type)?;
        // The first parameter is the tracepoint's own data.
        (proto.kind == Kind::FunctionProto).then(|| proto.parameters().skip(1).map(|(_, id)| id).collect())
    }

    /// Names and types of a function's arguments.
    fn function(&self, name: &str) -> Option<(Vec<&str>, Vec<TypeId>)> {
        let (_, function) = self.find(Kind::Function, name)?;
        let (_, proto) = self.strip(function.size_or_type)?;
        Some(proto.parameters().unzip())
    }

    fn tracepoint_names(&self, name: &str) -> Option<Vec<&str>> {
        ["__bpf_trace_", "__traceiter_"].iter().find_map(|prefix| {
            let (_, function) = self.find(Kind::Function, &format!("{prefix}{name}"))?;
            let (_, proto) = self.strip(function.size_or_type)?;
            let names: Vec<&str> = proto.parameters().skip(1).map(|(name, _)| name).collect();
            (!names.iter().any(|name| name.is_empty())).then_some(names)
        })
    }

    /// `*sock` fits a pointer to (const) struct sock, `*void` a pointer to nothing in particular, else the name of an
    /// enum or integer.
    fn is_named(&self, id: TypeId, name: &str) -> bool {
        let Some((_, found)) = self.strip(id) else {
            return false;
        };
        match name.strip_prefix('*') {
            None => matches!(found.kind, Kind::Enum | Kind::Enum64 | Kind::Int) && found.name() == name,
            Some(_) if found.kind != Kind::Pointer => false,
            Some("void") => self.strip_to_void(found),
            Some(target) => self.strip(found.size_or_type).is_some_and(|(_, t)| t.name() == target),
        }
    }

    fn is_number(&self, id: TypeId) -> bool {
        self.strip(id).is_some_and(|(_, found)| found.kind == Kind::Int)
    }

    fn strip_to_void(&self, pointer: Type<'_>) -> bool {
        let mut id = pointer.size_or_type;
        for _ in 0..super::raw::MAX_CHAIN {
            match self.get(id) {
                None => return id == 0,
                Some(t) if matches!(t.kind, Kind::Const | Kind::Volatile | Kind::Typedef) => id = t.size_or_type,
                Some(_) => return false,
            }
        }
        false
    }
}
