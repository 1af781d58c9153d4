//! New YAML for values that were not there before. Every scalar is on one line, and quoted where it must be.

use saphyr_parser::ScalarStyle;
use serde_json::Value;

use crate::db::resolve::{self, Resolved};

/// A scalar, quoted as the one that it replaces where that can be.
pub(super) fn scalar(value: &Value, style: ScalarStyle) -> String {
    match value {
        Value::String(text) => match style {
            ScalarStyle::SingleQuoted if printable(text) => format!("'{}'", text.replace('\'', "''")),
            ScalarStyle::DoubleQuoted => double_quoted(text),
            _ => string(text),
        },
        // Collections never get here but empty, and these read the same as JSON.
        other => other.to_string(),
    }
}

/// A whole document.
pub(super) fn root(value: &Value, newline: &str) -> String {
    match value {
        Value::Object(object) if !object.is_empty() => {
            let entries: Vec<String> = object.iter().map(|(name, value)| entry(name, value, 0, newline)).collect();
            entries.join(newline)
        }
        other => flow(other),
    }
}

/// `name: value`, indented, without the end of the line.
pub(super) fn entry(name: &str, value: &Value, indent: usize, newline: &str) -> String {
    format!("{:indent$}{}:{}", "", string(name), after_key(value, indent, newline))
}

/// What comes after a key's colon.
pub(super) fn after_key(value: &Value, indent: usize, newline: &str) -> String {
    let inner = indent + 2;
    match value {
        Value::Object(object) if !object.is_empty() => {
            object.iter().map(|(name, value)| format!("{newline}{}", entry(name, value, inner, newline))).collect()
        }
        Value::Array(array) if !array.is_empty() => {
            array.iter().map(|value| format!("{newline}{:inner$}-{}", "", after_dash(value, inner, newline))).collect()
        }
        other => format!(" {}", flow(other)),
    }
}

/// What comes after the dash in this column.
pub(super) fn after_dash(value: &Value, column: usize, newline: &str) -> String {
    let inner = column + 2;
    match value {
        Value::Object(object) if !object.is_empty() => {
            let entries: Vec<String> = object.iter().map(|(name, value)| entry(name, value, inner, newline)).collect();
            let text = entries.join(newline);
            format!(" {}", text.trim_start_matches(' '))
        }
        // A list in a list is rare, and plain on one line.
        other => format!(" {}", flow(other)),
    }
}

/// Any value on one line.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::Object(object) if !object.is_empty() => {
            let entries: Vec<String> = object.iter().map(|(name, value)| flow_entry(name, value)).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(array) if !array.is_empty() => {
            let items: Vec<String> = array.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        other => scalar(other, ScalarStyle::Plain),
    }
}

pub(super) fn flow_entry(name: &str, value: &Value) -> String {
    format!("{}: {}", string(name), flow(value))
}

/// A string, plain where no reader of YAML can take it for anything else.
fn string(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { double_quoted(text) }
}

fn is_plain(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' ' | ':' | '@' | '+');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '/'));
    edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(inside)
        && !text.contains(": ")
        && resolve::plain(text) == Resolved::Str
        && resolve::read_otherwise(text).is_none()
}

fn printable(text: &str) -> bool {
    !text.chars().any(must_be_escaped)
}

fn must_be_escaped(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// JSON's escapes are YAML's too.
fn double_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            // All of them are in the first plane.
            c if must_be_escaped(c) => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
