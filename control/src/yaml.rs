//! Writes YAML that every reader takes for what was meant.
//!
//! Texts always stand in double quotes, with everything escaped that some version of YAML reads in another way (`yes`, `0777`,
//! `1_000`, `2001-01-01`, a line end of Unicode), so that nothing depends on the reader. Same value, same bytes. Knows
//! nothing of what is written.

use std::fmt::Write as _;

use serde_yaml::{Mapping, Value};

/// Renders a document, in the order of its mappings.
pub fn render(document: &Mapping) -> String {
    let mut text = String::new();
    mapping(&mut text, document, 0);
    text
}

fn mapping(text: &mut String, mapping: &Mapping, indent: usize) {
    for (key, value) in mapping {
        pad(text, indent);
        match key {
            Value::String(name) if is_plain(name) => text.push_str(name),
            other => text.push_str(&scalar(other)),
        }
        text.push(':');
        below(text, value, indent + 2, true);
    }
}

fn sequence(text: &mut String, elements: &[Value], indent: usize) {
    for element in elements {
        pad(text, indent);
        text.push('-');
        below(text, element, indent + 2, false);
    }
}

/// Writes a value after its key or dash.
fn below(text: &mut String, value: &Value, indent: usize, of_key: bool) {
    match value {
        Value::Mapping(inner) if !inner.is_empty() => {
            if of_key {
                text.push('\n');
                mapping(text, inner, indent);
            } else {
                // The first key stands on the dash's own line.
                let mut block = String::new();
                mapping(&mut block, inner, indent);
                text.push(' ');
                text.push_str(block.trim_start_matches(' '));
            }
        }
        Value::Sequence(elements) if !elements.is_empty() => {
            text.push('\n');
            sequence(text, elements, indent);
        }
        Value::Tagged(tagged) => below(text, &tagged.value, indent, of_key),
        other => {
            text.push(' ');
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// Renders a value that has nothing below it.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Sequence(_) => "[]".to_owned(),
        Value::Mapping(_) => "{}".to_owned(),
        Value::Tagged(tagged) => scalar(&tagged.value),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters, the line ends of Unicode, and what is no character at all.
            '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Whether a key needs no quotes, whatever the version of YAML.
fn is_plain(name: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !WORDS.iter().any(|word| name.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Mapping {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn blocks_and_quotes() {
        let value =
            document("{a: {b: [1, x, {c: null, d: [e]}, [f, [g]]], yes: 0.5}, empty: {}, none: [], '': ~, 7: t}");
        insta::assert_snapshot!(render(&value), @r#"
        a:
          b:
            - 1
            - "x"
            - c: null
              d:
                - "e"
            -
              - "f"
              -
                - "g"
          "yes": 0.5
        empty: {}
        none: []
        "": null
        7: "t"
        "#);
    }

    #[test]
    fn texts_that_look_like_something_else_stay_texts() {
        for text in
            ["yes", "0777", "1_000", "2001-01-01", "~", "null", "1e3", ".inf", "<<", "=", "a: b", "# c", "- x", "", " "]
        {
            let value = Mapping::from_iter([("k".into(), text.into())]);
            assert_eq!(render(&value), format!("k: \"{text}\"\n"));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_text_reads_back_as_it_was(text in proptest::collection::vec(proptest::char::any(), 0..20), key in "\\PC*") {
            let text: String = text.into_iter().collect();
            let value = Mapping::from_iter([
                (key.as_str().into(), text.as_str().into()),
                ("list".into(), Value::Sequence(vec![text.as_str().into()])),
            ]);
            proptest::prop_assert_eq!(document(&render(&value)), value);
        }
    }
}
