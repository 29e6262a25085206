//! The contract only ever grows: a number of a field means for ever what it meant, as collectors and aggregators of
//! different versions talk to each other, and spools outlive upgrades.
//!
//! `golden/contract.txt` is every field and value there has ever been. After a field was added to the .proto,
//! `SONDE_WRITE_GOLDEN=1 cargo test -p sonde-proto --test contract` adds it there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// By `Message.number`: what it is, `reserved` where it is none any more.
type Contract = BTreeMap<String, String>;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/contract.txt")
}

fn current() -> Contract {
    let set = FileDescriptorSet::decode(sonde_proto::DESCRIPTION).unwrap();
    let mut contract = Contract::new();
    for file in &set.file {
        file.message_type
            .iter()
            .for_each(|message| add(&mut contract, "", message));
        for kind in &file.enum_type {
            for value in &kind.value {
                contract.insert(
                    format!("{} = {:03}", kind.name(), value.number()),
                    format!("value {}", value.name()),
                );
            }
            for range in &kind.reserved_range {
                for number in range.start()..=range.end() {
                    contract.insert(format!("{} = {number:03}", kind.name()), "reserved".into());
                }
            }
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |on: bool, name: &str| format!("{}{name}", if on { "stream " } else { "" });
                let what = format!(
                    "{} -> {}",
                    stream(method.client_streaming(), method.input_type()),
                    stream(method.server_streaming(), method.output_type())
                );
                contract.insert(format!("{}/{}", service.name(), method.name()), what);
            }
        }
    }
    contract
}

fn add(contract: &mut Contract, outer: &str, message: &DescriptorProto) {
    let name = format!("{outer}{}", message.name());
    for field in &message.field {
        contract.insert(format!("{name} = {:03}", field.number()), describe(field));
    }
    for range in &message.reserved_range {
        for number in range.start()..range.end() {
            contract.insert(format!("{name} = {number:03}"), "reserved".into());
        }
    }
    message
        .nested_type
        .iter()
        .for_each(|inner| add(contract, &format!("{name}."), inner));
}

fn describe(field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{label}{kind} {}", field.name())
}

fn parse(text: &str) -> Contract {
    let lines = text.lines().filter(|l| !l.is_empty());
    lines
        .map(|line| line.split_once(": ").expect("`what: is`"))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

/// What an old line and a new one have to have in common: a name may change, bytes may not.
fn broken(old: &Contract, new: &Contract) -> Vec<String> {
    let bytes = |what: &str| {
        what.rsplit_once(' ')
            .map_or(what.to_owned(), |(kind, _)| kind.to_owned())
    };
    old.iter()
        .filter_map(|(key, was)| match new.get(key) {
            None => Some(format!("{key}: was `{was}` and is gone: it has to be reserved")),
            Some(is) if is == "reserved" => None,
            Some(is) if was == "reserved" => Some(format!("{key}: is reserved, and now `{is}`")),
            Some(is) if bytes(was) != bytes(is) => Some(format!("{key}: was `{was}` and is now `{is}`")),
            Some(_) => None,
        })
        .collect()
}

#[test]
fn no_number_is_used_again_or_for_something_else() {
    let current = current();
    let old = parse(&std::fs::read_to_string(golden()).unwrap_or_default());
    assert_eq!(broken(&old, &current), Vec::<String>::new());
    if std::env::var_os("SONDE_WRITE_GOLDEN").is_some() {
        let text: String = current.iter().map(|(key, what)| format!("{key}: {what}\n")).collect();
        std::fs::write(golden(), text).unwrap();
        return;
    }
    assert_eq!(
        old, current,
        "the contract has grown or a name has changed: SONDE_WRITE_GOLDEN=1 cargo test -p sonde-proto --test contract"
    );
}

#[test]
fn what_breaks_the_contract_is_seen() {
    let old = parse("A = 001: uint32 a\nA = 002: string b\nA = 003: reserved\nA = 004: uint32 d\nA = 005: bytes e\n");
    let new = parse("A = 001: uint32 other\nA = 002: bytes b\nA = 003: string c\nA = 004: reserved\nA = 006: bool f\n");
    assert_eq!(
        broken(&old, &new),
        [
            "A = 002: was `string b` and is now `bytes b`",
            "A = 003: is reserved, and now `string c`",
            "A = 005: was `bytes e` and is gone: it has to be reserved",
        ]
    );
}
