//! The file's layout: header, types one after another, strings.

use std::sync::OnceLock;

/// Position of a type in its file, counted from 1; 0 is `void`.
pub(crate) type TypeId = u32;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BtfError {
    #[error("not BTF: it does not begin with 0xeb9f")]
    NotBtf,
    #[error("BTF of the other byte order")]
    OtherByteOrder,
    #[error("BTF version {0}, expected 1")]
    Version(u8),
    #[error("cut off: the header speaks of {needed} bytes, there are {have}")]
    Short { needed: u64, have: usize },
    #[error("type {id} is cut off")]
    TypeCut { id: TypeId },
    #[error("type {id} is of unknown kind {kind}")]
    UnknownKind { id: TypeId, kind: u32 },
    #[error("the first string is not empty")]
    Strings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    FunctionProto,
    Variable,
    DataSection,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Pointer,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Forward,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Function,
            13 => Self::FunctionProto,
            14 => Self::Variable,
            15 => Self::DataSection,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes that follow the type's first 12: a fixed part, and one for each of its elements.
    fn tail(self, elements: u32) -> u64 {
        let elements = u64::from(elements);
        match self {
            Self::Int | Self::Variable | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::DataSection | Self::Enum64 => elements * 12,
            Self::Enum | Self::FunctionProto => elements * 8,
            _ => 0,
        }
    }
}

/// A parsed file. Types are read in place when asked for.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    /// Where each type of this file begins; the first is `first_id`.
    starts: Vec<u32>,
    strings: std::ops::Range<usize>,
    /// 1, or one past the last type of the file that this one extends.
    first_id: TypeId,
    /// Length of the strings of the file that this one extends.
    string_base: u32,
    /// Hashes of names and the types that have them, sorted: a kernel has 130,000 types, and each program asks for many.
    names: OnceLock<Vec<(u32, TypeId)>>,
}

/// One type. `size_or_type` means what the kind says.
#[derive(Clone, Copy)]
pub(crate) struct Type<'a> {
    btf: &'a Btf,
    pub kind: Kind,
    /// Bit fields carry their width in the member.
    pub kind_flag: bool,
    name: u32,
    elements: u32,
    pub size_or_type: u32,
    tail: &'a [u8],
}

const HEADER: usize = 24;
/// The kernel's own are shorter than 512 bytes (KSYM_NAME_LEN). What is longer has no name here.
const LONGEST_NAME: usize = 1024;

impl Btf {
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        Self::parse_from(bytes, 1, 0)
    }

    /// A module's BTF, which goes on where the kernel's ends. Types and strings of the kernel are not looked up
    /// through it.
    pub(crate) fn parse_module(bytes: Vec<u8>, kernel: &Self) -> Result<Self, BtfError> {
        Self::parse_from(
            bytes,
            kernel.first_id + kernel.starts.len() as u32,
            kernel.strings.len() as u32,
        )
    }

    fn parse_from(bytes: Vec<u8>, first_id: TypeId, string_base: u32) -> Result<Self, BtfError> {
        let short = |needed: u64| BtfError::Short {
            needed,
            have: bytes.len(),
        };
        match u16_at(&bytes, 0).ok_or(BtfError::NotBtf)? {
            0xeb9f => {}
            0x9feb => return Err(BtfError::OtherByteOrder),
            _ => return Err(BtfError::NotBtf),
        }
        let version = *bytes.get(2).ok_or(short(HEADER as u64))?;
        if version != 1 {
            return Err(BtfError::Version(version));
        }
        let field = |at| u32_at(&bytes, at).map(u64::from).ok_or(short(HEADER as u64));
        let (header, types_at, types_len) = (field(4)?, field(8)?, field(12)?);
        let (strings_at, strings_len) = (field(16)?, field(20)?);
        let part = |at: u64, len: u64| {
            let (start, end) = (header + at, header + at + len);
            if end > bytes.len() as u64 {
                return Err(short(end));
            }
            Ok(start as usize..end as usize)
        };
        let types = part(types_at, types_len)?;
        let strings = part(strings_at, strings_len)?;
        if strings.is_empty() || (string_base == 0 && bytes[strings.start] != 0) {
            return Err(BtfError::Strings);
        }
        let starts = starts(&bytes, types, first_id)?;
        Ok(Self {
            bytes,
            starts,
            strings,
            first_id,
            string_base,
            names: OnceLock::new(),
        })
    }

    /// Number of types in this file.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn get(&self, id: TypeId) -> Option<Type<'_>> {
        let index = id.checked_sub(self.first_id)? as usize;
        let start = *self.starts.get(index)? as usize;
        let word = |at: usize| u32_at(&self.bytes, start + at);
        let info = word(4)?;
        let kind = Kind::from_number(info >> 24 & 0x1f)?;
        let elements = info & 0xffff;
        let tail = self.bytes.get(start + 12..)?.get(..kind.tail(elements) as usize)?;
        Some(Type {
            btf: self,
            kind,
            kind_flag: info >> 31 != 0,
            name: word(0)?,
            elements,
            size_or_type: word(8)?,
            tail,
        })
    }

    pub(crate) fn types(&self) -> impl Iterator<Item = (TypeId, Type<'_>)> {
        (self.first_id..).map_while(|id| Some((id, self.get(id)?)))
    }

    pub(crate) fn find(&self, kind: Kind, name: &str) -> Option<(TypeId, Type<'_>)> {
        let names = self.names.get_or_init(|| self.hashed_names());
        let wanted = hash(name);
        let first = names.partition_point(|(hash, _)| *hash < wanted);
        names[first..]
            .iter()
            .take_while(|(hash, _)| *hash == wanted)
            .filter_map(|(_, id)| Some((*id, self.get(*id)?)))
            .find(|(_, t)| t.kind == kind && t.name() == name)
    }

    fn hashed_names(&self) -> Vec<(u32, TypeId)> {
        let named = self.types().filter(|(_, t)| t.name != 0);
        let mut names: Vec<_> = named.map(|(id, t)| (hash(t.name()), id)).collect();
        // Of several types of one name, the first counts.
        names.sort_unstable();
        names
    }

    fn string(&self, offset: u32) -> &str {
        let Some(offset) = offset.checked_sub(self.string_base) else {
            return "";
        };
        let all = &self.bytes[self.strings.clone()];
        let from = all.get(offset as usize..).unwrap_or_default();
        // Thousands of names in a file may share one end that is far away.
        let from = &from[..from.len().min(LONGEST_NAME)];
        let end = from.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(&from[..end]).unwrap_or_default()
    }

    /// Through typedefs and qualifiers to what the type really is.
    pub(crate) fn strip(&self, mut id: TypeId) -> Option<(TypeId, Type<'_>)> {
        for _ in 0..MAX_CHAIN {
            let found = self.get(id)?;
            match found.kind {
                Kind::Typedef | Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag => {
                    id = found.size_or_type;
                }
                _ => return Some((id, found)),
            }
        }
        None
    }

    /// Bytes of a value of the type.
    pub(crate) fn size_of(&self, id: TypeId) -> Option<u32> {
        let mut id = id;
        let mut times = 1u32;
        for _ in 0..MAX_CHAIN {
            let (_, found) = self.strip(id)?;
            match found.kind {
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                    return found.size_or_type.checked_mul(times);
                }
                Kind::Pointer => return times.checked_mul(8),
                Kind::Array => {
                    let (element, count) = (u32_at(found.tail, 0)?, u32_at(found.tail, 8)?);
                    id = element;
                    times = times.checked_mul(count)?;
                }
                _ => return None,
            }
        }
        None
    }
}

/// Typedefs of typedefs, arrays of arrays, anonymous structs in anonymous unions: more than any kernel has.
pub(super) const MAX_CHAIN: usize = 32;

/// A member of a struct or union.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    pub name: &'a str,
    pub type_id: TypeId,
    pub bit_offset: u32,
    /// 0: not a bit field.
    pub width: u32,
}

impl<'a> Type<'a> {
    pub(crate) fn name(&self) -> &'a str {
        self.btf.string(self.name)
    }

    fn entries(&self, size: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.tail.chunks_exact(size).take(self.elements as usize)
    }

    /// Of a struct or union.
    pub(crate) fn members(self) -> impl Iterator<Item = Member<'a>> + use<'a> {
        let entries = matches!(self.kind, Kind::Struct | Kind::Union).then(|| self.entries(12));
        entries.into_iter().flatten().filter_map(move |entry| {
            let (name, type_id, offset) = (u32_at(entry, 0)?, u32_at(entry, 4)?, u32_at(entry, 8)?);
            let (bit_offset, width) = if self.kind_flag {
                (offset & 0xff_ffff, offset >> 24)
            } else {
                self.btf.old_bit_field(type_id, offset)
            };
            Some(Member {
                name: self.btf.string(name),
                type_id,
                bit_offset,
                width,
            })
        })
    }

    /// Names and values of an enum, 32 or 64 bits wide.
    pub(crate) fn enumerators(self) -> impl Iterator<Item = (&'a str, u64)> + use<'a> {
        let size = match self.kind {
            Kind::Enum => 8,
            Kind::Enum64 => 12,
            _ => usize::MAX,
        };
        self.entries(size).filter_map(move |entry| {
            let low = u64::from(u32_at(entry, 4)?);
            let high = u32_at(entry, 8).map_or(0, u64::from);
            Some((self.btf.string(u32_at(entry, 0)?), high << 32 | low))
        })
    }

    /// Names and types of a function prototype's parameters.
    pub(crate) fn parameters(self) -> impl Iterator<Item = (&'a str, TypeId)> + use<'a> {
        let entries = (self.kind == Kind::FunctionProto).then(|| self.entries(8));
        let btf = self.btf;
        entries
            .into_iter()
            .flatten()
            .filter_map(move |entry| Some((btf.string(u32_at(entry, 0)?), u32_at(entry, 4)?)))
    }
}

impl Btf {
    /// Before members carried a width, a bit field was a member whose integer type was narrower than its size.
    fn old_bit_field(&self, type_id: TypeId, bit_offset: u32) -> (u32, u32) {
        let described = self
            .strip(type_id)
            .filter(|(_, t)| t.kind == Kind::Int)
            .and_then(|(_, int)| {
                let data = u32_at(int.tail, 0)?;
                let (shift, bits) = (data >> 16 & 0xff, data & 0xff);
                (bits != int.size_or_type.wrapping_mul(8)).then_some((bit_offset.wrapping_add(shift), bits))
            });
        described.unwrap_or((bit_offset, 0))
    }
}

/// FNV-1a.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Walks all types once, so that later reads stay inside the file.
fn starts(bytes: &[u8], types: std::ops::Range<usize>, first_id: TypeId) -> Result<Vec<u32>, BtfError> {
    let section = &bytes[types.clone()];
    // A type takes some 30 bytes on average: saves most of the growing.
    let mut starts = Vec::with_capacity(section.len() / 32);
    let mut at = 0usize;
    while at < section.len() {
        let id = first_id.saturating_add(starts.len() as u32);
        let info = u32_at(section, at + 4).ok_or(BtfError::TypeCut { id })?;
        let number = info >> 24 & 0x1f;
        let kind = Kind::from_number(number).ok_or(BtfError::UnknownKind { id, kind: number })?;
        let next = at as u64 + 12 + kind.tail(info & 0xffff);
        if next > section.len() as u64 {
            return Err(BtfError::TypeCut { id });
        }
        starts.push((types.start + at) as u32);
        at = next as usize;
    }
    Ok(starts)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
