//! Makes small BTF files, so that tests can have the shapes of kernels that are not running here.

use super::raw::TypeId;

#[derive(Default)]
pub(crate) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
pub(crate) const STRUCT: u32 = 4;
pub(crate) const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const CONST: u32 = 10;
const FUNCTION: u32 = 12;
const PROTO: u32 = 13;

/// A member: name, type, offset in bits, width in bits (0: no bit field).
pub(crate) type M<'a> = (&'a str, TypeId, u32, u32);

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            strings: vec![0],
            ..Self::default()
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, kind: u32, elements: usize, size_or_type: u32, flag: bool, tail: &[u32]) -> TypeId {
        let name = self.string(name);
        let info = kind << 24 | elements as u32 | u32::from(flag) << 31;
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, name: &str, bytes: u32) -> TypeId {
        self.add(name, INT, 0, bytes, false, &[bytes * 8])
    }

    /// An integer narrower than its size: how bit fields were described before members had a width.
    pub(crate) fn narrow_int(&mut self, name: &str, bytes: u32, bits: u32) -> TypeId {
        self.add(name, INT, 0, bytes, false, &[bits])
    }

    pub(crate) fn pointer(&mut self, to: TypeId) -> TypeId {
        self.add("", POINTER, 0, to, false, &[])
    }

    pub(crate) fn constant(&mut self, of: TypeId) -> TypeId {
        self.add("", CONST, 0, of, false, &[])
    }

    pub(crate) fn typedef(&mut self, name: &str, of: TypeId) -> TypeId {
        self.add(name, TYPEDEF, 0, of, false, &[])
    }

    pub(crate) fn array(&mut self, of: TypeId, count: u32) -> TypeId {
        self.add("", ARRAY, 0, 0, false, &[of, of, count])
    }

    pub(crate) fn structure(&mut self, kind: u32, name: &str, bytes: u32, members: &[M<'_>]) -> TypeId {
        let flag = members.iter().any(|m| m.3 != 0);
        let mut tail = Vec::new();
        for (name, type_id, bits, width) in members {
            let name = self.string(name);
            tail.extend([name, *type_id, if flag { width << 24 | bits } else { *bits }]);
        }
        self.add(name, kind, members.len(), bytes, flag, &tail)
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> TypeId {
        let mut tail = Vec::new();
        for (name, value) in values {
            tail.extend([self.string(name), *value]);
        }
        self.add(name, ENUM, values.len(), 4, false, &tail)
    }

    pub(crate) fn proto(&mut self, parameters: &[(&str, TypeId)]) -> TypeId {
        let mut tail = Vec::new();
        for (name, type_id) in parameters {
            tail.extend([self.string(name), *type_id]);
        }
        self.add("", PROTO, parameters.len(), 0, false, &tail)
    }

    pub(crate) fn function(&mut self, name: &str, proto: TypeId) -> TypeId {
        self.add(name, FUNCTION, 0, proto, false, &[])
    }

    /// A tracepoint as the kernel describes it: a typedef without names, and with `names` the functions behind it.
    pub(crate) fn tracepoint(&mut self, name: &str, arguments: &[(&str, TypeId)], names: bool) {
        let nothing = self.pointer(0);
        let nameless: Vec<_> = arguments.iter().map(|(_, id)| ("", *id)).collect();
        let proto = self.proto(&[&[("", nothing)], nameless.as_slice()].concat());
        let pointer = self.pointer(proto);
        self.typedef(&format!("btf_trace_{name}"), pointer);
        if names {
            let proto = self.proto(&[&[("__data", nothing)], arguments].concat());
            self.function(&format!("__bpf_trace_{name}"), proto);
        }
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&0xeb9fu16.to_ne_bytes());
        out.extend_from_slice(&[1, 0]);
        for word in [
            24,
            0,
            self.types.len() as u32,
            self.types.len() as u32,
            self.strings.len() as u32,
        ] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}
