//! What a caller who may only look does not see of projects and services.

use serde_json::Value;

/// What stands in the place of what a caller may not see.
pub(in crate::api) const MASK: &str = "***";

/// What a caller may see of projects or services.
pub(in crate::api) fn shown(mut value: Value, secrets: bool) -> Value {
    if !secrets {
        mask(&mut value);
    }
    value
}

fn mask(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(mask),
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "env" | "environment" | "labels" => mask_all(value),
                    "secret" | "basic" | "set" | "command" | "before" | "test" if !value.is_null() => mask_all(value),
                    _ => mask(value),
                }
            }
        }
        _ => {}
    }
}

fn mask_all(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(mask_all),
        Value::Object(object) => object.values_mut().for_each(mask_all),
        value => *value = MASK.into(),
    }
}
