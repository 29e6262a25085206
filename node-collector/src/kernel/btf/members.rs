//! From a struct and a path such as `__sk_common.skc_net.net` to a place in memory.

use super::raw::{Btf, Kind, MAX_CHAIN, TypeId};

/// A member in memory, relative to the struct that the path began at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub bit_offset: u32,
    /// 0: not a bit field.
    pub width: u32,
    pub type_id: TypeId,
}

impl Btf {
    pub(super) fn member(&self, structure: &str, path: &str) -> Option<Found> {
        let (id, _) = self.find(Kind::Struct, structure)?;
        let mut found = Found {
            bit_offset: 0,
            width: 0,
            type_id: id,
        };
        for name in path.split('.') {
            let inner = self.member_of(found.type_id, name, &mut Vec::new())?;
            found = Found {
                bit_offset: found.bit_offset.checked_add(inner.bit_offset)?,
                ..inner
            };
        }
        Some(found)
    }

    /// Members of anonymous structs and unions count as the struct's own. What was searched once is not searched again: a
    /// hostile file may hold one thing in itself, and twice.
    fn member_of(&self, id: TypeId, name: &str, searched: &mut Vec<TypeId>) -> Option<Found> {
        let (id, structure) = self.strip(id)?;
        if searched.len() > MAX_CHAIN * MAX_CHAIN || searched.contains(&id) {
            return None;
        }
        searched.push(id);
        structure.members().find_map(|member| {
            if member.name == name {
                return Some(Found {
                    bit_offset: member.bit_offset,
                    width: member.width,
                    type_id: member.type_id,
                });
            }
            if !member.name.is_empty() {
                return None;
            }
            let inner = self.member_of(member.type_id, name, searched)?;
            Some(Found {
                bit_offset: inner.bit_offset.checked_add(member.bit_offset)?,
                ..inner
            })
        })
    }
}
