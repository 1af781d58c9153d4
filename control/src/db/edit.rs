//! Edits of db.yml that keep the user's comments, order and quoting.
//!
//! What is wanted is given as a value; the text is changed only where it says something else. The result is read again,
//! and must say exactly what is wanted: where it does not, nothing is changed. Knows nothing of projects but that
//! things with a `name` are the same thing.

mod nodes;
mod render;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;

use saphyr_parser::ScalarStyle;
use serde_json::{Map, Value};

use nodes::{Kind, Node};

/// Why a text cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It cannot be read.
    #[error("it cannot be read as YAML: {0}")]
    Unreadable(String),
    /// It is written in a way that an edit would harm: with anchors, merged keys and the like.
    #[error("it is written in a way (anchors, `<<`, tags, explicit keys) that cannot be edited safely here")]
    Unsafe,
}

/// A YAML text that can be edited.
pub struct Source<'a> {
    text: &'a str,
    root: Node,
    newline: &'static str,
}

impl<'a> Source<'a> {
    /// Reads a text of one document.
    pub fn parse(text: &'a str) -> Result<Source<'a>, EditError> {
        let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
        Ok(Source { text, root: nodes::parse(text)?, newline })
    }

    /// What the text says; keys that are not text as they are written.
    pub fn value(&self) -> &Value {
        &self.root.value
    }

    /// The text that says this instead, changed no more than it must be.
    pub fn rewrite(&self, wanted: &Value) -> Result<String, EditError> {
        if self.root.value == *wanted {
            return Ok(self.text.to_owned());
        }
        let mut editor = Editor { text: self.text, newline: self.newline, edits: Vec::new() };
        editor.reconcile(&self.root, wanted, Place::Root)?;
        let text = editor.apply()?;
        // Whatever was overlooked shows here.
        match Source::parse(&text) {
            Ok(read) if read.root.value == *wanted => Ok(text),
            _ => Err(EditError::Unsafe),
        }
    }
}

/// Where a node stands: what is replaced with it.
#[derive(Clone, Copy)]
enum Place<'n> {
    Root,
    Entry { key: &'n Node, flow: bool, indent: usize },
    Item { dash: Option<usize>, flow: bool },
}

fn is_block(style: ScalarStyle) -> bool {
    matches!(style, ScalarStyle::Literal | ScalarStyle::Folded)
}

struct Editor<'a> {
    text: &'a str,
    newline: &'static str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Editor<'a> {
    fn reconcile(&mut self, node: &Node, wanted: &Value, place: Place<'_>) -> Result<(), EditError> {
        if node.value == *wanted {
            return Ok(());
        }
        match (&node.kind, wanted) {
            (Kind::Mapping { flow, entries, .. }, Value::Object(wanted))
                if !entries.is_empty() && !wanted.is_empty() =>
            {
                let Value::Object(held) = &node.value else { return Err(EditError::Unsafe) };
                let kept = entries.iter().any(|(key, _)| key.name().is_some_and(|name| wanted.contains_key(name)));
                match (kept, flow) {
                    (false, _) => self.replace(node, &Value::Object(wanted.clone()), place),
                    (true, true) => self.flow_mapping(entries, held, wanted),
                    (true, false) => self.block_mapping(entries, held, wanted),
                }
            }
            (Kind::Sequence { flow, items }, Value::Array(wanted)) if !items.is_empty() && !wanted.is_empty() => {
                match pair(items, wanted) {
                    Some(pairs) if *flow => self.flow_sequence(items, &pairs, wanted),
                    Some(pairs) => self.block_sequence(node, items, &pairs, wanted, place),
                    None => self.replace(node, &Value::Array(wanted.clone()), place),
                }
            }
            (Kind::Scalar(style), wanted)
                if !wanted.is_object() && !wanted.is_array() && node.start < node.end && !is_block(*style) =>
            {
                // In place: what stands around it stays, also on the same line.
                self.edit(node.start..node.end, render::scalar(wanted, *style));
                Ok(())
            }
            _ => self.replace(node, wanted, place),
        }
    }

    /// Puts something else in the place of a node as a whole.
    fn replace(&mut self, node: &Node, wanted: &Value, place: Place<'_>) -> Result<(), EditError> {
        if node.bound {
            return Err(EditError::Unsafe);
        }
        let is_written = node.start < node.end;
        match place {
            Place::Root if is_written && self.text[..node.start].trim().is_empty() => {
                self.edit(node.start..node.end, render::root(wanted, self.newline));
            }
            Place::Root => {
                // Nothing but comments, and maybe a null.
                if is_written {
                    self.edit(node.start..node.end, String::new());
                }
                let end = self.text.len();
                let before = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { self.newline };
                self.edit(end..end, format!("{before}{}{}", render::root(wanted, self.newline), self.newline));
            }
            Place::Entry { flow: true, .. } | Place::Item { flow: true, .. } => {
                if !is_written {
                    return Err(EditError::Unsafe);
                }
                self.edit(node.start..node.end, render::flow(wanted));
            }
            Place::Entry { key, flow: false, indent } => {
                let from = self.after_colon(key)?;
                let text = render::after_key(wanted, indent, self.newline);
                self.edit(from..if is_written { node.end.max(from) } else { from }, text);
            }
            Place::Item { dash: Some(dash), flow: false } => {
                let column = self.column(dash);
                let text = render::after_dash(wanted, column, self.newline);
                self.edit(dash + 1..if is_written { node.end.max(dash + 1) } else { dash + 1 }, text);
            }
            Place::Item { dash: None, flow: false } => return Err(EditError::Unsafe),
        }
        Ok(())
    }

    fn block_mapping(
        &mut self,
        entries: &[(Node, Node)],
        held: &Map<String, Value>,
        wanted: &Map<String, Value>,
    ) -> Result<(), EditError> {
        let name = |key: &Node| key.name().map(str::to_owned).ok_or(EditError::Unsafe);
        let Some((first, _)) = entries.first() else { return Err(EditError::Unsafe) };
        let indent = self.column(first.start);
        let mut last_kept = None;
        let mut gone_from = None;
        for (index, (key, value)) in entries.iter().enumerate() {
            let name = name(key)?;
            let wanted = if key.is_merge() { Some(&value.value) } else { wanted.get(&name) };
            match wanted {
                Some(wanted) => {
                    if let Some(from) = gone_from.take() {
                        // The dash before the first key stays where it is.
                        self.edit(from..key.start, String::new());
                    }
                    self.reconcile(value, wanted, Place::Entry { key, flow: false, indent })?;
                    last_kept = Some((key, value));
                }
                None if gone_from.is_some() => {}
                None if index == 0 && !self.stands_first(key.start) => gone_from = Some(key.start),
                None => {
                    let end = self.end_of(key, value)?;
                    self.edit(self.line_start(key.start)..self.next_line(end), String::new());
                }
            }
        }
        let Some((key, value)) = last_kept else { return Err(EditError::Unsafe) };
        let own: HashSet<&str> = entries.iter().filter_map(|(key, _)| key.name()).collect();
        let mut added = String::new();
        for (name, wanted) in wanted.iter().filter(|(name, _)| !own.contains(name.as_str())) {
            // What `<<` brings in needs no key here, as long as it is the same.
            if held.get(name) != Some(wanted) {
                added.push_str(self.newline);
                added.push_str(&render::entry(name, wanted, indent, self.newline));
            }
        }
        if !added.is_empty() {
            let at = self.line_end(self.end_of(key, value)?);
            self.edit(at..at, added);
        }
        Ok(())
    }

    fn block_sequence(
        &mut self,
        node: &Node,
        items: &[Node],
        pairs: &[Option<usize>],
        wanted: &[Value],
        place: Place<'_>,
    ) -> Result<(), EditError> {
        let dashes: Vec<Option<usize>> = items.iter().map(|item| self.dash(item)).collect();
        let removable = |dash: &Option<usize>| dash.is_some_and(|dash| self.stands_first(dash));
        let sound = dashes.iter().zip(pairs).all(|(dash, pair)| pair.is_some() || removable(dash));
        let Some(column) = dashes.iter().flatten().next().map(|dash| self.column(*dash)).filter(|_| sound) else {
            return self.replace(node, &Value::Array(wanted.to_vec()), place);
        };
        let mut last_kept = None;
        for ((item, dash), pair) in items.iter().zip(&dashes).zip(pairs) {
            let end = if item.start < item.end { item.end } else { dash.map_or(item.end, |dash| dash + 1) };
            match (pair.and_then(|index| wanted.get(index)), dash) {
                (Some(wanted), dash) => {
                    self.reconcile(item, wanted, Place::Item { dash: *dash, flow: false })?;
                    last_kept = Some(end);
                }
                (None, Some(dash)) => self.edit(self.line_start(*dash)..self.next_line(end), String::new()),
                (None, None) => return Err(EditError::Unsafe),
            }
        }
        let Some(end) = last_kept else { return Err(EditError::Unsafe) };
        let matched = pairs.iter().flatten().count();
        let mut added = String::new();
        for wanted in &wanted[matched..] {
            added.push_str(self.newline);
            added.extend(std::iter::repeat_n(' ', column));
            added.push('-');
            added.push_str(&render::after_dash(wanted, column, self.newline));
        }
        if !added.is_empty() {
            let at = self.line_end(end);
            self.edit(at..at, added);
        }
        Ok(())
    }

    fn flow_mapping(
        &mut self,
        entries: &[(Node, Node)],
        held: &Map<String, Value>,
        wanted: &Map<String, Value>,
    ) -> Result<(), EditError> {
        let spans: Vec<Range<usize>> = entries.iter().map(|(key, value)| key.start..value.end.max(key.end)).collect();
        let mut keep = Vec::new();
        for (key, value) in entries {
            let name = key.name().ok_or(EditError::Unsafe)?;
            let wanted = if key.is_merge() { Some(&value.value) } else { wanted.get(name) };
            if let Some(wanted) = wanted {
                self.reconcile(value, wanted, Place::Entry { key, flow: true, indent: 0 })?;
            }
            keep.push(wanted.is_some());
        }
        let own: HashSet<&str> = entries.iter().filter_map(|(key, _)| key.name()).collect();
        let new =
            wanted.iter().filter(|(name, wanted)| !own.contains(name.as_str()) && held.get(*name) != Some(*wanted));
        let added: Vec<String> = new.map(|(name, wanted)| render::flow_entry(name, wanted)).collect();
        self.flow_list(&spans, &keep, &added)
    }

    fn flow_sequence(&mut self, items: &[Node], pairs: &[Option<usize>], wanted: &[Value]) -> Result<(), EditError> {
        let spans: Vec<Range<usize>> = items.iter().map(|item| item.start..item.end).collect();
        for (item, pair) in items.iter().zip(pairs) {
            if let Some(wanted) = pair.and_then(|index| wanted.get(index)) {
                self.reconcile(item, wanted, Place::Item { dash: None, flow: true })?;
            }
        }
        let keep: Vec<bool> = pairs.iter().map(Option::is_some).collect();
        let matched = keep.iter().filter(|keep| **keep).count();
        let added: Vec<String> = wanted[matched..].iter().map(render::flow).collect();
        self.flow_list(&spans, &keep, &added)
    }

    /// Takes elements out of `[a, b]` or `{a: b, c: d}`, with one comma each, and puts new ones at the end.
    fn flow_list(&mut self, spans: &[Range<usize>], keep: &[bool], added: &[String]) -> Result<(), EditError> {
        let last_kept = keep.iter().rposition(|keep| *keep).ok_or(EditError::Unsafe)?;
        for index in (0..spans.len()).filter(|index| !keep[*index]) {
            let range = match spans.get(index + 1) {
                // Up to the next element, kept or not.
                Some(next) if index < last_kept => spans[index].start..next.start,
                _ => spans[index - 1].end..spans[index].end,
            };
            self.edit(range, String::new());
        }
        if !added.is_empty() {
            let at = spans[last_kept].end;
            self.edit(at..at, added.iter().fold(String::new(), |text, new| text + ", " + new));
        }
        Ok(())
    }

    fn edit(&mut self, range: Range<usize>, text: String) {
        self.edits.push((range, text));
    }

    fn apply(mut self) -> Result<String, EditError> {
        // Stable: of two insertions in one place, the inner one came first.
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut text = String::with_capacity(self.text.len() + 256);
        let mut done = 0;
        for (range, new) in &self.edits {
            let between = self.text.get(done..range.start).ok_or(EditError::Unsafe)?;
            text.push_str(between);
            text.push_str(new);
            done = range.end;
        }
        text.push_str(self.text.get(done..).ok_or(EditError::Unsafe)?);
        Ok(text)
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |end| end + 1)
    }

    /// The end of the line's content.
    fn line_end(&self, at: usize) -> usize {
        let end = self.text[at..].find('\n').map_or(self.text.len(), |length| at + length);
        if end > at && self.text[..end].ends_with('\r') { end - 1 } else { end }
    }

    fn next_line(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |length| at + length + 1)
    }

    /// In characters, as YAML counts indentation.
    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count()
    }

    fn stands_first(&self, at: usize) -> bool {
        self.text[self.line_start(at)..at].trim().is_empty()
    }

    fn after_colon(&self, key: &Node) -> Result<usize, EditError> {
        let rest = &self.text[key.end..];
        let blank = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        if rest[blank..].starts_with(':') { Ok(key.end + blank + 1) } else { Err(EditError::Unsafe) }
    }

    /// Where an entry ends: its value, or its colon where there is none.
    fn end_of(&self, key: &Node, value: &Node) -> Result<usize, EditError> {
        let colon = self.after_colon(key)?;
        Ok(if value.start == value.end { colon } else { value.end.max(colon) })
    }

    /// The dash before an item of a block sequence, on the item's own line.
    fn dash(&self, item: &Node) -> Option<usize> {
        let before = &self.text[self.line_start(item.start)..item.start];
        let trimmed = before.trim_end_matches([' ', '\t']);
        trimmed.ends_with('-').then(|| self.line_start(item.start) + trimmed.len() - 1)
    }
}

/// For each item, the wanted element that it becomes, `None` where it goes. The wanted elements are those, in order, and
/// then new ones. `None` where the two cannot be paired like that.
fn pair(items: &[Node], wanted: &[Value]) -> Option<Vec<Option<usize>>> {
    let held: Vec<&Value> = items.iter().map(|item| &item.value).collect();
    let names = |values: &[&Value]| -> Option<Vec<String>> {
        let names: Option<Vec<String>> =
            values.iter().map(|value| Some(value.get("name")?.as_str()?.to_owned())).collect();
        names.filter(|names| names.iter().collect::<HashSet<_>>().len() == names.len())
    };
    let new: Vec<&Value> = wanted.iter().collect();
    let mut next = 0;
    let mut pairs = Vec::with_capacity(held.len());
    if let (Some(held), Some(new)) = (names(&held), names(&new)) {
        for name in &held {
            let found = new.iter().position(|new| new == name);
            match found {
                Some(index) if index == next => next += 1,
                // It is wanted, but in another order.
                Some(_) => return None,
                None => {}
            }
            pairs.push(found);
        }
    } else if held.len() == new.len() {
        pairs.extend((0..held.len()).map(Some));
    } else {
        for held in held {
            let equal = new.get(next).is_some_and(|new| *new == held);
            pairs.push(equal.then_some(next));
            next += usize::from(equal);
        }
    }
    pairs.iter().any(Option::is_some).then_some(pairs)
}
