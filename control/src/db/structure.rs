//! Checks the structure of a document against the schema: keys, types, and the format of every text.
//!
//! Reports every fault, not the first. Knows the schema's keywords, not what the keys mean.

use serde_json::Value as Schema;

use super::fault::Fault;
use super::formats;
use super::resolve::{self, Resolved};
use super::schema::resolve as follow;
use super::spans::{Kind, NodeId, Scalar, Tree};

/// Keys of other formats of this file, and what they are called here.
const MOVED: [(&str, &str); 12] = [
    ("svc", "it is called `name` now"),
    ("host", "it is called `name` here"),
    ("upstream", "name the service in the project's `entrypoint`"),
    ("ingress", "put `domain`, `port` and `passthrough` on the service, and paths into the project's `routes`"),
    ("path_prefix", "write it into the project's `routes: [{path, service, strip}]`"),
    ("path_remove", "write `strip: true` into the project's `routes: [{path, service, strip}]`"),
    ("hostport", "write `compose: {ports: [...]}`"),
    ("environment", "it is called `env` here"),
    ("ports", "`port` is where it listens; host ports go into `compose: {ports: [...]}`"),
    ("networks", "write it into `compose`"),
    ("hosts", "write `domain`, and further ones into `aliases`"),
    ("domains", "write `domain`, and further ones into `aliases`"),
];

/// Checks a node, and all below it, against a schema.
pub(super) fn check(tree: &Tree, node: NodeId, schema: &'static Schema, what: &str, faults: &mut Vec<Fault>) {
    Walk { tree, faults, skip: None }.node(node, schema, what);
}

/// Checks the root, but not the projects, which are checked one by one.
pub(super) fn check_root(tree: &Tree, root: NodeId, schema: &'static Schema, faults: &mut Vec<Fault>) {
    let projects = tree.field(root, "projects").filter(|list| matches!(tree.node(*list).kind, Kind::Sequence(_)));
    Walk { tree, faults, skip: projects }.node(root, schema, "the file");
}

struct Walk<'a> {
    tree: &'a Tree,
    faults: &'a mut Vec<Fault>,
    /// A node that is not looked into.
    skip: Option<NodeId>,
}

impl Walk<'_> {
    /// `what` names the node in messages: `` `port` `` or `an element of `aliases``.
    fn node(&mut self, id: NodeId, schema: &'static Schema, what: &str) {
        if self.skip == Some(id) {
            return;
        }
        let schema = follow(schema);
        let place = self.tree.place(id);
        if let Some(tag) = &self.tree.node(id).tag {
            let fault = Fault::error(place, format!("the tag `{}` means nothing here", tag.escape_debug()));
            self.faults.push(fault.hint("remove it; `!!str` and YAML's other own tags are fine"));
        }
        let branches = branches(schema);
        let Some(branch) = branches.iter().find(|branch| accepts(branch, self.tree, id)) else {
            self.wrong_type(id, &branches, what);
            return;
        };
        match &self.tree.node(id).kind {
            Kind::Scalar(scalar) => self.scalar(id, scalar, branch, what),
            Kind::Sequence(elements) => {
                let what =
                    if what.starts_with('`') { format!("an element of {what}") } else { "an element".to_owned() };
                for element in elements {
                    self.node(*element, &branch["items"], &what);
                }
            }
            Kind::Mapping(mapping) => {
                self.faults.extend(self.tree.faults(id).iter().cloned().map(Fault::from));
                self.mapping(id, mapping.entries(), branch, what);
            }
        }
    }

    fn scalar(&mut self, id: NodeId, scalar: &Scalar, schema: &'static Schema, what: &str) {
        let place = self.tree.place(id);
        self.read_otherwise(id, types(schema).as_slice());
        if scalar.value == Resolved::Null {
            return;
        }
        if let Some(allowed) = schema["enum"].as_array() {
            let allowed: Vec<String> = allowed.iter().filter_map(constant).collect();
            return self.one_of(id, scalar, &allowed, what);
        }
        if let Some(only) = constant(&schema["const"]) {
            return self.one_of(id, scalar, &[only], what);
        }
        if let (Some(minimum), Some(maximum)) = (schema["minimum"].as_u64(), schema["maximum"].as_u64())
            && !matches!(scalar.value, Resolved::Int(value) if (i128::from(minimum)..=i128::from(maximum)).contains(&value))
        {
            self.faults.push(Fault::error(place, format!("{what} must be from {minimum} to {maximum}")));
        }
        if scalar.text.is_empty() && schema["minLength"].as_u64().is_some_and(|least| least > 0) {
            self.faults.push(Fault::error(place, format!("{what} cannot be empty")));
        } else if let Some(format) = schema["format"].as_str()
            && let Err(misfit) = formats::check(format, &scalar.text)
        {
            self.faults.push(Fault::misfit(place, misfit));
        }
    }

    /// Warns of a plain scalar that the old tool, by YAML 1.1, read as something else.
    fn read_otherwise(&mut self, id: NodeId, types: &[&str]) {
        let Kind::Scalar(Scalar { value, text, plain: true }) = &self.tree.node(id).kind else { return };
        let Some(was) = resolve::read_otherwise(text) else { return };
        let as_written = types.contains(&"string") || *value == Resolved::Str;
        let fault = match (types.contains(&"boolean") && !types.contains(&"string"), resolve::py_bool(text)) {
            (true, Some(value)) => Fault::warning(
                self.tree.place(id),
                format!("`{text}` is read as {value}, which it is only in YAML 1.1"),
            )
            .hint(format!("write `{value}`")),
            _ if as_written && was == "text" => return,
            _ => {
                let here = if as_written { "text" } else { "a number" };
                let message = format!("`{text}` is {here} here; the old tool read {was}");
                Fault::warning(self.tree.place(id), message).hint(format!("for text, put it in quotes: \"{text}\""))
            }
        };
        self.faults.push(fault);
    }

    fn one_of(&mut self, id: NodeId, scalar: &Scalar, allowed: &[String], what: &str) {
        if allowed.contains(&scalar.text) {
            return;
        }
        let fault = Fault::error(self.tree.place(id), format!("{what} cannot be `{}`", scalar.text.escape_debug()));
        let hint = nearest(&scalar.text, allowed.iter().map(String::as_str))
            .map_or_else(|| format!("one of {}", list(allowed)), |near| format!("did you mean `{near}`?"));
        self.faults.push(fault.hint(hint));
    }

    fn mapping(&mut self, id: NodeId, entries: &[(NodeId, NodeId)], schema: &'static Schema, what: &str) {
        for (key, value) in entries {
            let Some(name) = self.tree.text(*key) else {
                self.faults.push(Fault::error(self.tree.place(*key), "a key must be text"));
                continue;
            };
            self.read_otherwise(*key, &["string"]);
            if let Some(format) = follow(&schema["propertyNames"])["format"].as_str()
                && let Err(misfit) = formats::check(format, name)
            {
                self.faults.push(Fault::misfit(self.tree.place(*key), misfit));
            }
            match property(schema, name) {
                Some(property) => {
                    if property["deprecated"] == true {
                        let message = property["description"].as_str().unwrap_or("Has no effect.");
                        let fault = Fault::warning(
                            self.tree.place(*key),
                            format!("`{name}`: {}", message.trim_end_matches('.')),
                        );
                        self.faults.push(fault);
                    }
                    self.node(*value, property, &format!("`{}`", name.escape_debug()));
                }
                None => self.unknown(*key, name, schema),
            }
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str) {
            if self.tree.key(id, required).is_none() {
                let owner = if what.starts_with('`') { what } else { "it" };
                let fault = Fault::error(self.tree.place(id), format!("`{required}` is missing"));
                self.faults.push(fault.hint(format!("{owner} needs `{required}: ...`")));
            }
        }
    }

    fn unknown(&mut self, key: NodeId, name: &str, schema: &'static Schema) {
        let known = || schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let fault = Fault::error(self.tree.place(key), format!("unknown key `{}`", name.escape_debug()));
        let moved = MOVED.iter().find(|(old, _)| *old == name && known().any(|known| known == "name"));
        let hint = moved.map(|(_, hint)| (*hint).to_owned()).or_else(|| {
            let near = nearest(name, known().filter(|known| schema["properties"][*known]["deprecated"] != true));
            near.map(|near| format!("did you mean `{near}`?"))
        });
        let hint = hint.or_else(|| {
            let known: Vec<String> = known().map(str::to_owned).collect();
            (!known.is_empty() && known.len() <= 8).then(|| format!("known here: {}", list(&known)))
        });
        self.faults.push(fault.maybe_hint(hint));
    }

    fn wrong_type(&mut self, id: NodeId, branches: &[&'static Schema], what: &str) {
        let unit = branches.iter().find_map(|branch| match branch["format"].as_str()? {
            "duration" | "limit" | "compose-duration" => Some("s"),
            "size" => Some("MB"),
            _ => None,
        });
        if let (Some(unit), Kind::Scalar(Scalar { value: Resolved::Int(number), .. })) =
            (unit, &self.tree.node(id).kind)
        {
            let fault = Fault::error(self.tree.place(id), format!("{what} needs a unit"));
            self.faults.push(fault.hint(format!("such as `{number}{unit}`")));
            return;
        }
        let mut expected: Vec<&str> = branches.iter().flat_map(|branch| types(branch)).filter_map(described).collect();
        expected.dedup();
        let expected = match expected.as_slice() {
            [] => "something else",
            ["text", "a number", "true or false"] => "a single value",
            [one] => one,
            several => &several.join(" or "),
        };
        let (found, scalar) = match &self.tree.node(id).kind {
            Kind::Sequence(_) => ("a list", None),
            Kind::Mapping(_) => ("a mapping", None),
            Kind::Scalar(scalar) => match scalar.value {
                Resolved::Null => ("empty", None),
                Resolved::Bool(_) => ("true or false", Some(scalar)),
                Resolved::Int(_) | Resolved::Huge(_) | Resolved::Float(_) => ("a number", Some(scalar)),
                Resolved::Str => ("text", Some(scalar)),
            },
        };
        let hint = scalar.and_then(|scalar| type_hint(scalar, expected));
        let fault = Fault::error(self.tree.place(id), format!("{what} must be {expected}, and is {found}"));
        self.faults.push(fault.maybe_hint(hint));
    }
}

/// What to write instead of a scalar of the wrong type.
fn type_hint(scalar: &Scalar, expected: &str) -> Option<String> {
    let text = scalar.text.escape_debug();
    match expected {
        "text" if scalar.plain => Some(format!("put it in quotes: \"{text}\"")),
        "a whole number" if !scalar.plain && scalar.text.parse::<u64>().is_ok() => {
            Some(format!("without quotes: {text}"))
        }
        "a list" => Some(format!("write it as a list: [{text}]")),
        _ => None,
    }
}

/// The schema itself, or the alternatives that it names.
fn branches(schema: &'static Schema) -> Vec<&'static Schema> {
    match schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
        Some(alternatives) => alternatives.iter().flat_map(|alternative| branches(follow(alternative))).collect(),
        None => vec![schema],
    }
}

/// The JSON types that a schema takes; none where it takes all.
fn types(schema: &'static Schema) -> Vec<&'static str> {
    match &schema["type"] {
        Schema::String(one) => vec![one],
        Schema::Array(several) => several.iter().filter_map(Schema::as_str).collect(),
        _ => Vec::new(),
    }
}

fn described(json_type: &str) -> Option<&'static str> {
    match json_type {
        "string" => Some("text"),
        "integer" => Some("a whole number"),
        "number" => Some("a number"),
        "boolean" => Some("true or false"),
        "array" => Some("a list"),
        "object" => Some("a mapping"),
        _ => None,
    }
}

/// Reports whether a node's type is one that the schema takes.
fn accepts(schema: &'static Schema, tree: &Tree, id: NodeId) -> bool {
    let types = types(schema);
    let takes = |name| types.contains(&name);
    if types.is_empty() {
        return true;
    }
    match &tree.node(id).kind {
        Kind::Sequence(_) => takes("array"),
        Kind::Mapping(_) => takes("object"),
        Kind::Scalar(scalar) => match scalar.value {
            Resolved::Null => takes("null"),
            Resolved::Bool(_) => takes("boolean"),
            Resolved::Int(_) | Resolved::Huge(_) => takes("integer") || takes("number"),
            Resolved::Float(_) => takes("number"),
            Resolved::Str => {
                takes("string") || takes("boolean") && scalar.plain && resolve::py_bool(&scalar.text).is_some()
            }
        },
    }
}

fn property(schema: &'static Schema, name: &str) -> Option<&'static Schema> {
    if let Some(property) = schema["properties"].get(name) {
        return Some(property);
    }
    // `^x-` is the only pattern in use.
    for (pattern, property) in schema["patternProperties"].as_object().into_iter().flatten() {
        if pattern.strip_prefix('^').is_some_and(|prefix| name.starts_with(prefix)) {
            return Some(property);
        }
    }
    match &schema["additionalProperties"] {
        Schema::Bool(false) => None,
        other => Some(other),
    }
}

fn constant(value: &Schema) -> Option<String> {
    match value {
        Schema::String(text) => Some(text.clone()),
        Schema::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The known name that a misspelt one most likely means.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let lower = name.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&lower, &known.to_lowercase().replace('-', "_"));
    let limit = match name.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=8 => 2,
        _ => 3,
    };
    let best = known.map(|known| (distance(known), known)).min_by_key(|(distance, _)| *distance)?;
    (best.0 <= limit).then_some(best.1)
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
