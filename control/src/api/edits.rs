//! What a change does to db.yml's value, and what of it is shown. Pure.

mod defaults;
mod mask;
mod power;
#[cfg(test)]
mod tests;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::Problem;
use crate::db_file::WriteError;
use defaults::{PROJECT, SERVICE, in_order_of, without_defaults};
pub(super) use defaults::{services_of, with_defaults};
pub(super) use mask::{MASK, shown};
pub(super) use power::no_new_power;

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
