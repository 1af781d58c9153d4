//! A YAML document as a tree of what it says and where each thing begins and ends in the text.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

use super::EditError;
use crate::db::resolve::Resolved;
use crate::db::spans::tagged_scalar;

/// A node with its place, in bytes.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) start: usize,
    /// Just after its last byte; equal to `start` for a value that is not written.
    pub(super) end: usize,
    pub(super) kind: Kind,
    /// What it says, aliases and `<<` written out.
    pub(super) value: Value,
    /// Whether something in it is bound to another place, or has a tag: it cannot be written anew.
    pub(super) bound: bool,
    /// A key's name.
    text: Option<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar(ScalarStyle),
    Sequence {
        flow: bool,
        items: Vec<Node>,
    },
    /// As written, with `<<`.
    Mapping {
        flow: bool,
        entries: Vec<(Node, Node)>,
    },
    Alias,
}

impl Node {
    /// What a key is called; `None` for what is no scalar.
    pub(super) fn name(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Reports whether this key is the `<<` that brings in another mapping's keys.
    pub(super) fn is_merge(&self) -> bool {
        self.name() == Some("<<") && matches!(self.kind, Kind::Scalar(ScalarStyle::Plain))
    }
}

/// A collection that has begun and not ended.
struct Open {
    start: usize,
    anchor: usize,
    tagged: bool,
    is_mapping: bool,
    children: Vec<Node>,
}

/// Reads a text of one document; an empty one is null.
pub(super) fn parse(text: &str) -> Result<Node, EditError> {
    let offsets = Offsets::new(text);
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Value> = HashMap::new();
    let mut root = None;
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| EditError::Unreadable(error.to_string()))?;
        let node = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(EditError::Unsafe);
                }
                continue;
            }
            Event::Scalar(content, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let (resolved, _) = tagged_scalar(&content, plain, tag.as_deref());
                let value = scalar(resolved, &content);
                if anchor != 0 {
                    anchors.insert(anchor, value.clone());
                }
                let (start, end) = offsets.scalar(text, span, style);
                let end = if plain && content.is_empty() { start } else { end };
                let bound = anchor != 0 || tag.is_some();
                Node { start, end, kind: Kind::Scalar(style), value, bound, text: Some(content.into_owned()) }
            }
            Event::SequenceStart(anchor, tag) => {
                let start = offsets.byte(span.start.index());
                let tagged = tag.is_some();
                open.push(Open { start, anchor, tagged, is_mapping: false, children: Vec::new() });
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                let start = offsets.byte(span.start.index());
                let tagged = tag.is_some();
                open.push(Open { start, anchor, tagged, is_mapping: true, children: Vec::new() });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(closed) = open.pop() else { return Err(EditError::Unsafe) };
                let anchor = closed.anchor;
                let node = close(text, closed);
                if anchor != 0 {
                    anchors.insert(anchor, node.value.clone());
                }
                node
            }
            Event::Alias(anchor) => {
                let (start, end) = offsets.span(text, span);
                let value = anchors.get(&anchor).cloned().ok_or(EditError::Unsafe)?;
                Node { start, end, kind: Kind::Alias, value, bound: true, text: None }
            }
            _ => continue,
        };
        match open.last_mut() {
            Some(open) => open.children.push(node),
            None => root = Some(node),
        }
    }
    let nothing = || Node {
        start: 0,
        end: 0,
        kind: Kind::Scalar(ScalarStyle::Plain),
        value: Value::Null,
        bound: false,
        text: None,
    };
    Ok(root.unwrap_or_else(nothing))
}

fn close(text: &str, closed: Open) -> Node {
    let Open { start, anchor, tagged, is_mapping, children } = closed;
    let bound = anchor != 0 || tagged || children.iter().any(|child| child.bound);
    let (opening, closing) = if is_mapping { ('{', '}') } else { ('[', ']') };
    let flow = text[start..].starts_with(opening);
    let last = children.iter().map(|child| child.end).max();
    // The parser looks past the comments after it.
    let end = if flow { closed_at(text, last.unwrap_or(start + 1), closing) } else { last.unwrap_or(start) };
    // The first thing in a block mapping is where it begins, whatever stands before it.
    let start = match children.first() {
        Some(first) if is_mapping && !flow => first.start,
        _ => start,
    };
    if !is_mapping {
        let value = children.iter().map(|child| child.value.clone()).collect();
        return Node { start, end, kind: Kind::Sequence { flow, items: children }, value, bound, text: None };
    }
    let mut entries = Vec::with_capacity(children.len() / 2);
    let mut children = children.into_iter();
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        entries.push((key, value));
    }
    let value = Value::Object(merged(&entries));
    Node { start, end, kind: Kind::Mapping { flow, entries }, value, bound, text: None }
}

/// Just after the bracket that closes a flow collection, which stands after the last thing in it.
fn closed_at(text: &str, last: usize, closing: char) -> usize {
    let mut at = last;
    loop {
        let rest = &text[at..];
        at += rest.len() - rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
        match text[at..].chars().next() {
            Some('#') => at += text[at..].find('\n').unwrap_or(text.len() - at),
            Some(c) if c == closing => return at + 1,
            // Something that is not told apart here; an edit of it is found to be wrong.
            _ => return last,
        }
    }
}

/// A mapping's own keys, and then what `<<` brings in.
fn merged(entries: &[(Node, Node)]) -> Map<String, Value> {
    let mut all = Map::new();
    for (key, value) in entries.iter().filter(|(key, _)| !key.is_merge()) {
        // A key that is no scalar has no name, and stands in the way of every edit of this mapping.
        all.entry(key.name().unwrap_or_default()).or_insert_with(|| value.value.clone());
    }
    for (_, value) in entries.iter().filter(|(key, _)| key.is_merge()) {
        let many = match &value.value {
            Value::Array(many) => many.as_slice(),
            one => std::slice::from_ref(one),
        };
        for (name, inner) in many.iter().filter_map(Value::as_object).flatten() {
            all.entry(name.as_str()).or_insert_with(|| inner.clone());
        }
    }
    all
}

fn scalar(resolved: Resolved, text: &str) -> Value {
    match resolved {
        Resolved::Null => Value::Null,
        Resolved::Bool(value) => value.into(),
        Resolved::Float(value) => value.into(),
        Resolved::Int(value) => match (u64::try_from(value), i64::try_from(value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            _ => text.into(),
        },
        Resolved::Huge(_) | Resolved::Str => text.into(),
    }
}

/// From the parser's characters to bytes.
struct Offsets {
    /// Empty where the text is ASCII, and they are the same.
    bytes: Vec<usize>,
    length: usize,
}

impl Offsets {
    fn new(text: &str) -> Offsets {
        let bytes = if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(at, _)| at).collect() };
        Offsets { bytes, length: text.len() }
    }

    fn byte(&self, character: usize) -> usize {
        if self.bytes.is_empty() {
            return character.min(self.length);
        }
        self.bytes.get(character).copied().unwrap_or(self.length)
    }

    /// An alias's bytes.
    fn span(&self, text: &str, span: Span) -> (usize, usize) {
        let start = self.byte(span.start.index());
        let end = text[start..].find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}'));
        (start, end.map_or(text.len(), |end| start + end))
    }

    /// A scalar's bytes. The parser may count in what follows it: blanks, line ends, a comment.
    fn scalar(&self, text: &str, span: Span, style: ScalarStyle) -> (usize, usize) {
        let start = self.byte(span.start.index());
        let told = self.byte(span.end.index()).max(start);
        let end = match style {
            ScalarStyle::SingleQuoted => quoted(text, start, '\''),
            ScalarStyle::DoubleQuoted => quoted(text, start, '"'),
            ScalarStyle::Literal | ScalarStyle::Folded => return block(text, start),
            // A plain scalar has no ` #` in it.
            ScalarStyle::Plain => {
                let written = &text[start..told];
                let comment = written.match_indices('#').find(|(at, _)| written[..*at].ends_with(char::is_whitespace));
                comment.map_or(told, |(at, _)| start + at)
            }
        };
        (start, start + text[start..end].trim_end().len())
    }
}

/// Just after the closing quote.
fn quoted(text: &str, start: usize, quote: char) -> usize {
    let mut rest = text[start..].char_indices().skip(1).peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            '\\' if quote == '"' => drop(rest.next()),
            c if c != quote => {}
            // Two of them are one that is meant.
            _ if quote == '\'' && rest.next_if(|(_, next)| *next == quote).is_some() => {}
            _ => return start + at + quote.len_utf8(),
        }
    }
    text.len()
}

/// From the `|` or `>` to the end of the last line that is content.
fn block(text: &str, told: usize) -> (usize, usize) {
    let start =
        if text[told..].starts_with(['|', '>']) { told } else { text[..told].rfind(['|', '>']).unwrap_or(told) };
    let blanks = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let mut indent = None;
    let mut at = start;
    let mut end = start;
    for (number, line) in text[start..].split_inclusive('\n').enumerate() {
        let written = line.trim_end();
        if number == 0 || !written.is_empty() {
            if number > 0 && blanks(written) < *indent.get_or_insert(blanks(written)) {
                break;
            }
            end = at + written.len();
        }
        at += line.len();
    }
    (start, end)
}
