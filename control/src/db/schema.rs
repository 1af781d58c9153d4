//! The JSON Schema of db.yml (draft 2020-12): for editors, and for our own check of its structure.

use std::sync::LazyLock;

use super::file::File;

static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(|| {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>();
    schema.insert("$id".to_owned(), "urn:itsup:db.yml".into());
    schema.into()
});

/// Returns db.yml's JSON Schema.
pub fn schema() -> &'static serde_json::Value {
    &SCHEMA
}

/// Follows a `$ref` into `$defs`; the generator writes no others.
pub(super) fn resolve(schema: &'static serde_json::Value) -> &'static serde_json::Value {
    let target = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    target.and_then(|pointer| SCHEMA.pointer(pointer)).unwrap_or(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_closed_and_of_the_current_draft() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        for name in ["Project", "Service", "Route", "Rollout", "Health", "Webhook"] {
            assert_eq!(schema["$defs"][name]["additionalProperties"], false, "{name}");
        }
    }

    #[test]
    fn every_key_is_described() {
        fn walk(at: &str, schema: &serde_json::Value) {
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{at}.{key} has no description");
            }
            for (name, inner) in schema["$defs"].as_object().into_iter().flatten() {
                walk(name, inner);
            }
        }
        walk("db.yml", schema());
    }
}
