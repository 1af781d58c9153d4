//! What a change does to db.yml's value, and what of it is shown. Pure.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::Problem;
use crate::db_file::WriteError;

/// What stands in the place of what a caller may not see.
pub(super) const MASK: &str = "***";

/// Why a change cannot be made.
#[derive(Debug)]
pub(super) enum EditFault {
    Write(WriteError),
    Refused(Problem),
}

impl EditFault {
    fn not_found(detail: String) -> EditFault {
        EditFault::Refused(Problem::not_found(detail))
    }

    fn unfit(detail: impl Into<String>) -> EditFault {
        EditFault::Refused(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
    }

    pub(super) fn no_service(project: &str, service: &str) -> EditFault {
        EditFault::not_found(format!("project {project} has no service {service:?}"))
    }
}

impl From<WriteError> for EditFault {
    fn from(error: WriteError) -> EditFault {
        EditFault::Write(error)
    }
}

impl From<EditFault> for Problem {
    fn from(fault: EditFault) -> Problem {
        match fault {
            EditFault::Write(error) => error.into(),
            EditFault::Refused(problem) => problem,
        }
    }
}

/// What a project or service is called, which it must be.
pub(super) fn name(value: &Value) -> Result<String, EditFault> {
    let name = value.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| EditFault::unfit("it must be an object with a `name`"))
}

pub(super) fn projects(db: &Value) -> &[Value] {
    db.get("projects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn project<'v>(db: &'v Value, name: &str) -> Result<&'v Value, EditFault> {
    let found = projects(db).iter().find(|project| project["name"] == *name);
    found.ok_or_else(|| EditFault::not_found(format!("there is no project {name:?}")))
}

pub(super) fn service<'v>(db: &'v Value, of: &str, name: &str) -> Result<&'v Value, EditFault> {
    let services = project(db, of)?.get("services").and_then(Value::as_array);
    let found = services.into_iter().flatten().find(|service| service["name"] == *name);
    found.ok_or_else(|| EditFault::no_service(of, name))
}

/// A list under a key, made where it is not there; a null counts as none.
fn list<'v>(object: &'v mut Value, key: &str) -> Result<&'v mut Vec<Value>, EditFault> {
    if object.is_null() {
        *object = json!({});
    }
    let object = object.as_object_mut().ok_or_else(|| EditFault::unfit("db.yml is no mapping"))?;
    let list = object.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or_else(|| EditFault::unfit(format!("`{key}` in db.yml is no list")))
}

fn project_mut<'v>(db: &'v mut Value, name: &str) -> Result<&'v mut Value, EditFault> {
    let found = list(db, "projects")?.iter_mut().find(|project| project["name"] == *name);
    found.ok_or_else(|| EditFault::not_found(format!("there is no project {name:?}")))
}

fn service_mut<'v>(db: &'v mut Value, of: &str, name: &str) -> Result<&'v mut Value, EditFault> {
    let found = list(project_mut(db, of)?, "services")?.iter_mut().find(|service| service["name"] == *name);
    found.ok_or_else(|| EditFault::no_service(of, name))
}

pub(super) fn put_project(db: &mut Value, new: Value) -> Result<(), EditFault> {
    let name = name(&new)?;
    let projects = list(db, "projects")?;
    match projects.iter_mut().find(|project| project["name"] == *name) {
        Some(held) => {
            let mut new = without_defaults(new, Some(&*held), PROJECT);
            let services = new.get_mut("services").and_then(Value::as_array_mut);
            for service in services.into_iter().flatten() {
                let of = held.get("services").and_then(Value::as_array);
                let was = of.into_iter().flatten().find(|was| was["name"] == service["name"]);
                *service = without_defaults(service.take(), was, SERVICE);
            }
            *held = in_order_of(held, new);
        }
        None => {
            let mut new = without_defaults(new, None, PROJECT);
            for service in new.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten() {
                *service = without_defaults(service.take(), None, SERVICE);
            }
            projects.push(new);
        }
    }
    Ok(())
}

pub(super) fn patch_project(db: &mut Value, name: &str, patch: &Value) -> Result<(), EditFault> {
    let project = project_mut(db, name)?;
    merge(project, named(patch, name)?);
    Ok(())
}

pub(super) fn delete_project(db: &mut Value, name: &str) -> Result<(), EditFault> {
    project(db, name)?;
    list(db, "projects")?.retain(|project| project["name"] != *name);
    Ok(())
}

pub(super) fn put_service(db: &mut Value, of: &str, new: Value) -> Result<(), EditFault> {
    let name = name(&new)?;
    let services = list(project_mut(db, of)?, "services")?;
    match services.iter_mut().find(|service| service["name"] == *name) {
        Some(held) => *held = in_order_of(held, without_defaults(new, Some(&*held), SERVICE)),
        None => services.push(without_defaults(new, None, SERVICE)),
    }
    Ok(())
}

pub(super) fn patch_service(db: &mut Value, of: &str, name: &str, patch: &Value) -> Result<(), EditFault> {
    let service = service_mut(db, of, name)?;
    merge(service, named(patch, name)?);
    Ok(())
}

pub(super) fn delete_service(db: &mut Value, of: &str, name: &str) -> Result<(), EditFault> {
    service(db, of, name)?;
    list(project_mut(db, of)?, "services")?.retain(|service| service["name"] != *name);
    Ok(())
}

/// Sets variables in whichever of the two ways they are written; a null removes one.
pub(super) fn set_env(db: &mut Value, of: &str, name: &str, new: &Map<String, Value>) -> Result<(), EditFault> {
    let service = service_mut(db, of, name)?;
    let Some(service) = service.as_object_mut() else { return Err(EditFault::no_service(of, name)) };
    match service.get_mut("env") {
        Some(Value::Array(list)) => {
            for (name, value) in new {
                let is_it = |line: &Value| line.as_str().is_some_and(|line| line.split('=').next() == Some(name));
                let text = match value {
                    Value::Null => None,
                    Value::String(text) => Some(format!("{name}={text}")),
                    Value::Bool(_) | Value::Number(_) => Some(format!("{name}={value}")),
                    _ => {
                        return Err(EditFault::unfit(format!(
                            "the value of {name} is neither text, a number nor a flag"
                        )));
                    }
                };
                match (list.iter().position(is_it), text) {
                    (Some(index), Some(text)) => list[index] = text.into(),
                    (Some(index), None) => drop(list.remove(index)),
                    (None, Some(text)) => list.push(text.into()),
                    (None, None) => {}
                }
            }
        }
        Some(env @ Value::Object(_)) => merge(env, &Value::Object(new.clone())),
        _ => {
            let mut env = json!({});
            merge(&mut env, &Value::Object(new.clone()));
            service.insert("env".into(), env);
        }
    }
    Ok(())
}

/// A patch that is an object, and does not change the name it is found by.
fn named<'p>(patch: &'p Value, name: &str) -> Result<&'p Value, EditFault> {
    let Some(object) = patch.as_object() else { return Err(EditFault::unfit("a merge patch must be an object")) };
    match object.get("name") {
        Some(other) if *other != *name => {
            Err(EditFault::unfit("a name cannot be changed: add the new one and remove the old"))
        }
        _ => Ok(patch),
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// What the old tool answered where db.yml says nothing.
type Defaults = &'static [(&'static str, Default)];

#[derive(Clone, Copy)]
enum Default {
    Null,
    False,
    Port,
    Text,
    List,
    Object,
}

const PROJECT: Defaults = &[
    ("description", Default::Null),
    ("domain", Default::Null),
    ("entrypoint", Default::Null),
    ("services", Default::List),
];
const SERVICE: Defaults = &[
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
pub(super) fn with_defaults(project: &Value) -> Value {
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
pub(super) fn services_of(project: &Value) -> Vec<Value> {
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
fn without_defaults(mut new: Value, held: Option<&Value>, defaults: Defaults) -> Value {
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
fn in_order_of(held: &Value, new: Value) -> Value {
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

/// A service's variables, whichever way they are written.
pub(super) fn env(service: &Value) -> Map<String, Value> {
    match service.get("env") {
        Some(Value::Object(env)) => env.clone(),
        Some(Value::Array(list)) => {
            let lines = list.iter().filter_map(Value::as_str);
            lines
                .map(|line| line.split_once('=').unwrap_or((line, "")))
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        }
        _ => Map::new(),
    }
}

/// What a caller may see of projects or services.
pub(super) fn shown(mut value: Value, secrets: bool) -> Value {
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

/// Refuses what gives root on the host and was not there before: `compose` blocks, and folders of the host as volumes.
pub(super) fn no_new_power(before: &Value, after: &Value) -> Result<(), EditFault> {
    let refused = |what: String| {
        let problem = Problem::new(StatusCode::FORBIDDEN, format!("{what} gives root on this host"));
        EditFault::Refused(problem.hint("write it into db.yml by hand, or set ITSUP_API_COMPOSE=on"))
    };
    for project in projects(after) {
        for service in project.get("services").and_then(Value::as_array).into_iter().flatten() {
            let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
            let was = self::service(before, &name(project), &name(service)).ok();
            for key in ["compose", "additional_properties"] {
                let old = was.and_then(|was| was.get(key));
                if service.get(key).is_some_and(|new| !new.is_null() && Some(new) != old) {
                    return Err(refused(format!("`{key}` of {}", name(service))));
                }
            }
            let old = was.and_then(|was| was.get("volumes")).and_then(Value::as_array);
            for volume in service.get("volumes").and_then(Value::as_array).into_iter().flatten() {
                let known = old.is_some_and(|old| old.contains(volume));
                if !known && volume.as_str().is_none_or(is_of_the_host) {
                    return Err(refused(format!("the volume {volume} of {}", name(service))));
                }
            }
        }
    }
    Ok(())
}

/// `/path` alone and `name:/path` stay within the project; anything else with a source is the host's.
fn is_of_the_host(volume: &str) -> bool {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    volume.contains("..")
        || volume.split_once(':').is_some_and(|(source, _)| !source.chars().all(named) || source.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db() -> Value {
        json!({"projects": [{"name": "a", "domain": "a.example.com", "services": [
            {"name": "web", "image": "x", "env": {"A": "1"}},
            {"name": "old", "image": "y", "env": ["B=2", "C"], "volumes": ["/host:/x"]}]}]})
    }

    #[test]
    fn what_was_read_can_be_sent_back_and_changes_nothing() {
        let mut value = db();
        let read = with_defaults(&value["projects"][0]);
        assert_eq!(read["services"][0]["port"], 8080);
        assert_eq!(read["services"][1]["env"], json!({"B": "2", "C": ""}));
        put_project(&mut value, read).unwrap();
        assert_eq!(value, db());
        for service in services_of(&value["projects"][0].clone()) {
            assert_eq!(service["project"], "a");
            put_service(&mut value, "a", service).unwrap();
        }
        assert_eq!(value, db());
    }

    #[test]
    fn changes() {
        let mut value = db();
        patch_service(&mut value, "a", "web", &json!({"port": 81, "image": null, "env": {"A": null, "Z": 1}})).unwrap();
        assert_eq!(value["projects"][0]["services"][0], json!({"name": "web", "env": {"Z": 1}, "port": 81}));
        let env = json!({"B": "3", "C": null, "D": true});
        set_env(&mut value, "a", "old", env.as_object().unwrap()).unwrap();
        assert_eq!(value["projects"][0]["services"][1]["env"], json!(["B=3", "D=true"]));
        put_service(&mut value, "a", json!({"name": "new"})).unwrap();
        delete_service(&mut value, "a", "old").unwrap();
        assert!(service(&value, "a", "old").is_err() && service(&value, "a", "new").is_ok());
        put_project(&mut value, json!({"name": "b"})).unwrap();
        delete_project(&mut value, "a").unwrap();
        assert_eq!(value, json!({"projects": [{"name": "b"}]}));
        let mut empty = Value::Null;
        put_project(&mut empty, json!({"name": "b"})).unwrap();
        assert_eq!(empty, value);
        for fault in [
            patch_project(&mut value, "x", &json!({})),
            patch_project(&mut value, "b", &json!([])),
            patch_project(&mut value, "b", &json!({"name": "c"})),
            delete_project(&mut value, "x"),
            put_service(&mut value, "x", json!({"name": "y"})),
            put_project(&mut value, json!([])),
        ] {
            assert!(fault.is_err());
        }
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let project = json!({"name": "a", "webhook": {"secret": "s", "branch": "main"}, "access": {"basic": ["u:h"]},
            "services": [{"env": {"A": 1}, "compose": {"environment": ["B=2"]}, "image": "i"}]});
        let shown = shown(project, false);
        let text = shown.to_string();
        assert!(!text.contains("u:h") && !text.contains("B=2") && !text.contains(":1"), "{text}");
        assert_eq!(shown["webhook"], json!({"secret": "***", "branch": "main"}));
        assert_eq!(shown["services"][0]["image"], "i");
    }

    #[test]
    fn root_on_the_host_is_not_given_away() {
        let refused = |change: fn(&mut Value)| {
            let mut after = db();
            change(&mut after["projects"][0]["services"][1]);
            no_new_power(&db(), &after).is_err()
        };
        assert!(!refused(|service| service["port"] = json!(1)));
        assert!(!refused(|service| service["volumes"] = json!(["/host:/x", "/data", "named:/data"])));
        assert!(refused(|service| service["volumes"] = json!(["/:/x"])));
        assert!(refused(|service| service["volumes"] = json!(["./../../x:/x"])));
        assert!(refused(|service| service["volumes"] = json!(["~/x:/x"])));
        assert!(refused(|service| service["volumes"] = json!(["${HOME}:/x"])));
        assert!(refused(|service| service["compose"] = json!({"privileged": true})));
        assert!(refused(|service| service["additional_properties"] = json!({"privileged": true})));
    }
}
