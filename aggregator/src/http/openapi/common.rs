//! What all endpoints have in common, said once: names of operations, how errors look, and the forms of parameters that
//! mean the same wherever they are taken (`params.rs` reads them).

use utoipa::Modify;
use utoipa::openapi::path::{Operation, Parameter, PathItem};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ArrayItems, Object, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr};

use crate::kubernetes::KINDS;
use crate::store::query::stats::Field;

pub(super) struct Common;

/// Media type of errors.
const PROBLEM: &str = "application/problem+json";

const TIME: &str = r"^(now|-[0-9]{1,15}(ms|s|m|h|d)|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[-+ ][0-9]{2}:[0-9]{2}))$";
const SPAN: &str = "^[0-9]{1,15}(ms|s|m|h|d)$";
/// Any text: a NUL byte cannot be in PostgreSQL's.
const TEXT: &str = r"^[^\x00]*$";

/// The form of a parameter, as a regular expression, by its name.
const FORMS: [(&str, &str); 11] = [
    ("from", TIME),
    ("to", TIME),
    ("at", TIME),
    ("step", SPAN),
    ("order", "^(desc|asc)$"),
    ("format", "^(ndjson|csv)$"),
    ("min_latency", "^[0-9]{1,19}(ms|s|m|h|d)?$"),
    ("ip", r"^!?[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?$"),
    (
        "port",
        "^!?(0*[0-9]{1,4}|0*[1-5][0-9]{4}|0*6[0-4][0-9]{3}|0*65[0-4][0-9]{2}|0*655[0-2][0-9]|0*6553[0-5])$",
    ),
    ("q", r"^([^!\x00]|![^\x00])[^\x00]*$"),
    ("cursor", "^[A-Za-z0-9_-]+$"),
];

/// The words that a parameter takes, where they are a list in the code; behind `!` where several can be given.
fn words(name: &str) -> Option<String> {
    let any = |words: Vec<&str>| words.join("|");
    match name {
        "by" => Some(format!("^({})$", any(Field::ALL.map(|(word, _)| word).into()))),
        "kind" => Some(format!("^!?({})$", any(KINDS.map(|(word, _)| word).into()))),
        _ => None,
    }
}

impl Modify for Common {
    fn modify(&self, document: &mut OpenApi) {
        // Who may ask is settled in front of the aggregator: it listens on loopback alone.
        document.security = Some(Vec::new());
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations(item) {
                operation.operation_id = Some(name(method, path));
                for parameter in operation.parameters.iter_mut().flatten() {
                    if let RefOr::T(parameter) = parameter {
                        describe(parameter);
                    }
                }
                respond(operation);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [("get", &mut item.get), ("post", &mut item.post)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// `get_api_v1_probes_probe_rows`.
fn name(method: &str, path: &str) -> String {
    let words = path
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

/// A parameter is given or not; none is null. What has a form says it.
fn describe(parameter: &mut Parameter) {
    let name = parameter.name.clone();
    let Some(RefOr::T(schema)) = &mut parameter.schema else {
        return;
    };
    match schema {
        Schema::Object(object) => shape(object, &name),
        Schema::Array(array) => {
            without_null(&mut array.schema_type);
            if let ArrayItems::RefOrSchema(item) = &mut array.items
                && let RefOr::T(Schema::Object(object)) = &mut **item
            {
                shape(object, &name);
            }
        }
        _ => {}
    }
}

fn shape(object: &mut Object, name: &str) {
    without_null(&mut object.schema_type);
    let text = object.schema_type == SchemaType::Type(Type::String);
    if text && object.pattern.is_none() && object.enum_values.is_none() {
        let form = FORMS.iter().find(|(known, _)| *known == name);
        let form = || form.map_or(TEXT, |(_, form)| form).to_owned();
        object.pattern = Some(words(name).unwrap_or_else(form));
    }
    if name == "limit" {
        // None is no page; an endpoint's own bound stays as it says.
        object.minimum = Some(1u32.into());
        object.maximum.get_or_insert(u32::MAX.into());
    }
}

fn without_null(schema: &mut SchemaType) {
    if let SchemaType::Array(types) = schema {
        types.retain(|t| *t != Type::Null);
        if let [only] = types.as_slice() {
            *schema = SchemaType::Type(only.clone());
        }
    }
}

/// Any endpoint may refuse a request, be it for its method alone; every answer says what it is.
fn respond(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    responses
        .entry("4XX".to_owned())
        .or_insert_with(|| RefOr::T(Response::default()));
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        let error = match status.as_bytes() {
            [b'4', ..] => "The request cannot be answered: `detail` says what was wrong and what was expected",
            [b'5', ..] => "The request could not be answered now: `detail` says why",
            _ => {
                if response.description.is_empty() {
                    response.description = "The answer".into();
                }
                continue;
            }
        };
        if response.description.is_empty() {
            response.description = error.into();
        }
        match response.content.shift_remove("application/json") {
            Some(content) => drop(response.content.insert(PROBLEM.into(), content)),
            None if response.content.is_empty() => {
                let problem = utoipa::openapi::ContentBuilder::new()
                    .schema(Some(Ref::from_schema_name("Problem")))
                    .build();
                response.content.insert(PROBLEM.into(), problem.into());
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::to_value(super::super::openapi()).unwrap()
    }

    #[test]
    fn an_operation_is_named_by_its_method_and_path() {
        assert_eq!(
            name("get", "/api/v1/probes/{probe}/rows"),
            "get_api_v1_probes_probe_rows"
        );
        assert_eq!(name("get", "/-/healthy"), "get_healthy");
    }

    #[test]
    fn no_parameter_is_null_and_every_error_is_a_problem() {
        let document = document();
        for (path, item) in document["paths"].as_object().unwrap() {
            for parameter in item["get"]["parameters"].as_array().unwrap_or(&Vec::new()) {
                let text = parameter["schema"].to_string();
                assert!(!text.contains("null"), "{path}: {parameter}");
                assert!(
                    !text.contains("\"string\"") || text.contains("pattern") || text.contains("enum"),
                    "{path}: {parameter}"
                );
            }
            let refusal = &item["get"]["responses"]["4XX"];
            assert!(refusal["content"][PROBLEM].is_object(), "{path}: {refusal}");
            assert!(refusal["description"].is_string(), "{path}: {refusal}");
        }
    }
}
