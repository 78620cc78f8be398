//! Checks JSON against a schema, as far as ours go. The crates for it change how serde_json reads numbers, in the
//! program too.

use serde_json::Value;

/// What is wrong with a value, with its place; all that a schema can say and this does not know is wrong, too.
pub fn check(root: &Value, value: &Value) -> Result<(), String> {
    at(root, root, value, "$")
}

fn at(root: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let Value::Object(rules) = schema else {
        return Ok(());
    };
    let fail = |what: String| Err(format!("{place}: {what}"));
    for (rule, given) in rules {
        let list = given.as_array().map_or(&[][..], Vec::as_slice);
        let passing = || {
            let results = list.iter().map(|schema| at(root, schema, value, place));
            results.filter(Result::is_ok).count()
        };
        match rule.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => {}
            "$ref" => {
                let name = given
                    .as_str()
                    .and_then(|name| name.strip_prefix('#'))
                    .unwrap();
                at(root, root.pointer(name).unwrap(), value, place)?;
            }
            "type" => {
                let is = |kind: &Value| match kind.as_str().unwrap() {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("type {other}"),
                };
                if !(list.iter().any(is) || given.is_string() && is(given)) {
                    return fail(format!("{value} is not {given}"));
                }
            }
            "const" if given == value => {}
            "enum" if list.contains(value) => {}
            "const" | "enum" => return fail(format!("{value} is not {given}")),
            "minimum" | "maximum" => {
                let (Some(number), Some(end)) = (value.as_f64(), given.as_f64()) else {
                    continue;
                };
                if (rule == "minimum") == (number < end) && number != end {
                    return fail(format!("{number} is past {end}"));
                }
            }
            "minItems" | "maxItems" => {
                let Some(items) = value.as_array() else {
                    continue;
                };
                let end = given.as_u64().unwrap() as usize;
                if (rule == "minItems") == (items.len() < end) && items.len() != end {
                    return fail(format!("{} items", items.len()));
                }
            }
            "required" => {
                for name in list {
                    if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
                        return fail(format!("no {name}"));
                    }
                }
            }
            "properties" => {
                for (name, schema) in given.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        at(root, schema, value, &format!("{place}.{name}"))?;
                    }
                }
            }
            "additionalProperties" if *given == Value::Bool(false) => {
                for name in value
                    .as_object()
                    .into_iter()
                    .flat_map(|object| object.keys())
                {
                    if rules
                        .get("properties")
                        .is_none_or(|known| known.get(name).is_none())
                    {
                        return fail(format!("{name} is not known"));
                    }
                }
            }
            "items" => {
                for (number, value) in value.as_array().into_iter().flatten().enumerate() {
                    at(root, given, value, &format!("{place}[{number}]"))?;
                }
            }
            "anyOf" if passing() > 0 => {}
            "oneOf" if passing() == 1 => {}
            "anyOf" | "oneOf" => {
                let reasons: Vec<String> = list
                    .iter()
                    .filter_map(|schema| at(root, schema, value, place).err())
                    .collect();
                return fail(format!(
                    "fits {} of {rule}: {}",
                    passing(),
                    reasons.join("; ")
                ));
            }
            other => return fail(format!("the rule {other} is not known")),
        }
    }
    Ok(())
}
