//! The defaults that the old tool filled in: written out in what is shown, and taken out of what comes back.

use serde_json::{Map, Value, json};

use super::env;

/// What the old tool answered where db.yml says nothing.
pub(super) type Defaults = &'static [(&'static str, Default)];

#[derive(Clone, Copy)]
pub(super) enum Default {
    Null,
    False,
    Port,
    Text,
    List,
    Object,
}

pub(super) const PROJECT: Defaults = &[
    ("description", Default::Null),
    ("domain", Default::Null),
    ("entrypoint", Default::Null),
    ("services", Default::List),
];
pub(super) const SERVICE: Defaults = &[
    ("image", Default::Null),
    ("port", Default::Port),
    ("passthrough", Default::False),
    ("env", Default::Object),
    ("volumes", Default::List),
    ("project", Default::Text),
];

impl Default {
    fn value(self) -> Value {
        match self {
            Default::Null => Value::Null,
            Default::False => false.into(),
            Default::Port => 8080.into(),
            Default::Text => "".into(),
            Default::List => json!([]),
            Default::Object => json!({}),
        }
    }
}

/// A project with the defaults written out, and those of its services.
pub(in crate::api) fn with_defaults(project: &Value) -> Value {
    let mut project = project.clone();
    fill(&mut project, PROJECT);
    for service in project.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten() {
        filled_service(service);
    }
    project
}

fn filled_service(service: &mut Value) {
    let env = env(service);
    fill(service, SERVICE);
    service["env"] = Value::Object(env);
    if let Some(service) = service.as_object_mut() {
        service.shift_remove("project");
    }
}

fn fill(value: &mut Value, defaults: Defaults) {
    if let Some(object) = value.as_object_mut() {
        for (key, default) in defaults {
            let held = object.entry(*key).or_insert(Value::Null);
            if held.is_null() {
                *held = default.value();
            }
        }
    } else {
        *value = json!({});
    }
}

/// A project's services with the defaults written out, each with its project's name.
pub(in crate::api) fn services_of(project: &Value) -> Vec<Value> {
    let name = project["name"].clone();
    let services = project.get("services").and_then(Value::as_array).into_iter().flatten();
    services
        .map(|service| {
            let mut service = service.clone();
            filled_service(&mut service);
            service["project"] = name.clone();
            service
        })
        .collect()
}

/// Takes out what only repeats a default and does not stand in db.yml, so that what was read can be sent back.
pub(super) fn without_defaults(mut new: Value, held: Option<&Value>, defaults: Defaults) -> Value {
    if let Some(object) = new.as_object_mut() {
        object.retain(|key, value| {
            let stands = held.is_some_and(|held| held.get(key).is_some());
            // The project that a service is listed with is no key of db.yml.
            let listed = key == "project" && defaults.iter().any(|(name, _)| *name == "project");
            let default =
                defaults.iter().any(|(name, default)| name == key && (value.is_null() || *value == default.value()));
            stands && !value.is_null() || !(default || value.is_null() || listed)
        });
        // The list of `NAME=value` is shown as an object; sent back unchanged, it stays a list.
        if let Some(held) = held.filter(|held| held.get("env").is_some_and(Value::is_array))
            && object.get("env").and_then(Value::as_object) == Some(&env(held))
            && let Some(list) = held.get("env")
        {
            object.insert("env".into(), list.clone());
        }
    }
    new
}

/// New keys after those that stand there, as the file orders them.
pub(super) fn in_order_of(held: &Value, new: Value) -> Value {
    let (Some(held), Value::Object(mut new)) = (held.as_object(), new) else { return Value::Null };
    let mut ordered = Map::new();
    for key in held.keys() {
        if let Some(value) = new.shift_remove(key) {
            ordered.insert(key.clone(), value);
        }
    }
    ordered.extend(new);
    Value::Object(ordered)
}
