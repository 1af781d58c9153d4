//! A YAML document as a tree that knows where everything stands.
//!
//! Parsed with saphyr, and compared node by node with what serde_yaml reads: a document that the two read
//! differently is refused. Knows nothing of projects.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::read::Read;
use super::resolve::{self, Resolved};

/// How deep a document may nest.
const MAX_HEIGHT: u32 = 64;

/// How many nodes a document may have once every alias is written out, beyond four times those it has.
const MAX_EXPANSION: u64 = 200_000;

/// A place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
}

/// A fault of the text itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlFault {
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) hint: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

/// A node with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) kind: Kind,
    /// A tag that is none of YAML's own, such as `!secret`.
    pub(super) tag: Option<String>,
    /// Nodes below and with this one, aliases written out.
    weight: u64,
    height: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar(Scalar),
    Sequence(Vec<NodeId>),
    Mapping(Mapping),
}

#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) value: Resolved,
    /// As written, without quotes.
    pub(super) text: String,
    /// Neither quoted nor tagged.
    pub(super) plain: bool,
}

#[derive(Debug, Default)]
pub(super) struct Mapping {
    /// As written, with `<<`.
    written: Vec<(NodeId, NodeId)>,
    /// With what `<<` brings in, after the mapping's own keys; `None` where there is no `<<`.
    merged: Option<Vec<(NodeId, NodeId)>>,
}

impl Mapping {
    /// The keys and values, `<<` resolved.
    pub(super) fn entries(&self) -> &[(NodeId, NodeId)] {
        self.merged.as_deref().unwrap_or(&self.written)
    }
}

/// A document. Aliases share the node of their anchor.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: NodeId,
    /// By mapping: keys that stand twice in it, and `<<` of something that is no mapping.
    faults: HashMap<NodeId, Vec<YamlFault>>,
}

impl Tree {
    /// Parses one document that serde_yaml has already accepted.
    pub(super) fn parse(text: &str) -> Result<Self, YamlFault> {
        let mut builder = Builder::default();
        let mut parser = Parser::new_from_str(text);
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let place = Place { line: error.marker().line(), column: error.marker().col() + 1 };
                YamlFault { place, message: format!("not valid YAML: {}", error.info()), hint: None }
            })?;
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        let message = "a second YAML document begins here".to_owned();
                        let hint = Some("keep everything in one document: remove the `---`");
                        return Err(YamlFault { place: place(span), message, hint });
                    }
                }
                Event::StreamEnd => break,
                event => builder.event(event, span)?,
            }
        }
        builder.finish()
    }

    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(super) fn place(&self, id: NodeId) -> Place {
        self.node(id).place
    }

    /// The text of a scalar, as written; `None` for a sequence, a mapping and null.
    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).kind {
            Kind::Scalar(scalar) if scalar.value != Resolved::Null => Some(&scalar.text),
            _ => None,
        }
    }

    /// The text of a scalar that is a string.
    pub(super) fn str(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).kind {
            Kind::Scalar(Scalar { value: Resolved::Str, text, .. }) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self, id: NodeId) -> bool {
        matches!(&self.node(id).kind, Kind::Scalar(Scalar { value: Resolved::Null, .. }))
    }

    /// A scalar that is true or false, in YAML 1.1's spelling as well.
    pub(super) fn flag(&self, id: NodeId) -> Option<bool> {
        match &self.node(id).kind {
            Kind::Scalar(Scalar { value: Resolved::Bool(value), .. }) => Some(*value),
            Kind::Scalar(Scalar { value: Resolved::Str, plain: true, text }) => resolve::py_bool(text),
            _ => None,
        }
    }

    /// The faults of a mapping as YAML.
    pub(super) fn faults(&self, id: NodeId) -> &[YamlFault] {
        self.faults.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// A mapping's keys and values, `<<` resolved; none where it is no mapping.
    pub(super) fn entries(&self, id: NodeId) -> &[(NodeId, NodeId)] {
        match &self.node(id).kind {
            Kind::Mapping(mapping) => mapping.entries(),
            _ => &[],
        }
    }

    /// A sequence's elements; none where it is no sequence.
    pub(super) fn elements(&self, id: NodeId) -> &[NodeId] {
        match &self.node(id).kind {
            Kind::Sequence(elements) => elements,
            _ => &[],
        }
    }

    /// The value under a key, unless it is null.
    pub(super) fn field(&self, id: NodeId, key: &str) -> Option<NodeId> {
        let found = self.entries(id).iter().find(|(name, _)| self.str(*name) == Some(key));
        found.map(|(_, value)| *value).filter(|value| !self.is_null(*value))
    }

    /// The key node of a key, for faults that are about the key itself.
    pub(super) fn key(&self, id: NodeId, key: &str) -> Option<NodeId> {
        self.entries(id).iter().map(|(name, _)| *name).find(|name| self.str(*name) == Some(key))
    }

    /// The subtree as serde_yaml's value, `<<` resolved.
    ///
    /// A number too large for it becomes text; of a key that stands twice, the first wins.
    pub(super) fn value(&self, id: NodeId) -> serde_yaml::Value {
        use serde_yaml::Value;
        match &self.node(id).kind {
            Kind::Scalar(scalar) => match scalar.value {
                Resolved::Null => Value::Null,
                Resolved::Bool(value) => value.into(),
                Resolved::Float(value) => value.into(),
                Resolved::Int(value) => match (u64::try_from(value), i64::try_from(value)) {
                    (Ok(value), _) => value.into(),
                    (_, Ok(value)) => value.into(),
                    _ => scalar.text.as_str().into(),
                },
                Resolved::Huge(_) | Resolved::Str => scalar.text.as_str().into(),
            },
            Kind::Sequence(elements) => elements.iter().map(|id| self.value(*id)).collect::<Vec<_>>().into(),
            Kind::Mapping(mapping) => {
                let mut value = serde_yaml::Mapping::new();
                for (key, inner) in mapping.entries() {
                    value.entry(self.value(*key)).or_insert_with(|| self.value(*inner));
                }
                value.into()
            }
        }
    }

    /// Finds the first node that serde_yaml reads differently.
    pub(super) fn disagreement(&self, read: &Read) -> Option<Place> {
        self.differs(self.root, read)
    }

    fn differs(&self, id: NodeId, read: &Read) -> Option<Place> {
        let node = self.node(id);
        let read = match read {
            Read::Tagged(inner) => inner,
            read => read,
        };
        match (&node.kind, read) {
            (Kind::Scalar(scalar), read) => {
                let same = match (scalar.value, read) {
                    (Resolved::Null, Read::Null) => true,
                    (Resolved::Bool(a), Read::Bool(b)) => a == *b,
                    (Resolved::Int(a), Read::Int(b)) => a == *b,
                    (Resolved::Huge(a), Read::Huge(b)) => a == *b,
                    (Resolved::Float(a), Read::Float(b)) => a == *b || a.is_nan() && b.is_nan(),
                    (Resolved::Str, Read::Str(b)) => scalar.text == *b,
                    _ => false,
                };
                (!same).then_some(node.place)
            }
            (Kind::Sequence(elements), Read::Sequence(read)) => {
                let differs = elements.iter().zip(read).find_map(|(id, read)| self.differs(*id, read));
                differs.or((elements.len() != read.len()).then_some(node.place))
            }
            (Kind::Mapping(mapping), Read::Mapping(read)) => {
                let differs = mapping.written.iter().zip(read).find_map(|((key, value), (read_key, read_value))| {
                    self.differs(*key, read_key).or_else(|| self.differs(*value, read_value))
                });
                differs.or((mapping.written.len() != read.len()).then_some(node.place))
            }
            _ => Some(node.place),
        }
    }
}

fn place(span: Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

/// Builds a tree from events, without recursion.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    open: Vec<Open>,
    /// saphyr's anchor ids; absent while the anchored node is still open.
    anchors: HashMap<usize, NodeId>,
    root: Option<NodeId>,
    faults: HashMap<NodeId, Vec<YamlFault>>,
}

/// A sequence or mapping that has begun and not ended.
struct Open {
    place: Place,
    tag: Option<String>,
    anchor: usize,
    is_mapping: bool,
    children: Vec<NodeId>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlFault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), place(span)),
            Event::SequenceStart(anchor, tag) => self.begin(false, anchor, tag.as_deref(), place(span)),
            Event::MappingStart(anchor, tag) => self.begin(true, anchor, tag.as_deref(), place(span)),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(id) => {
                    let id = *id;
                    self.attach(id);
                    Ok(())
                }
                None => Err(YamlFault {
                    place: place(span),
                    message: "this alias stands inside its own anchor".to_owned(),
                    hint: Some("an alias can only repeat what is complete before it"),
                }),
            },
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        mut place: Place,
    ) -> Result<(), YamlFault> {
        let plain = style == ScalarStyle::Plain;
        let (value, foreign) = tagged_scalar(text, plain, tag);
        if let (true, Some(open)) = (plain && text.is_empty(), self.open.last())
            && open.is_mapping
            && let Some(key) = open.children.last().filter(|_| open.children.len() % 2 == 1)
        {
            // A value that is not there stands where its key does.
            place = self.nodes[key.0].place;
        }
        let scalar = Scalar { value, text: text.to_owned(), plain: plain && tag.is_none() };
        let node = Node { place, kind: Kind::Scalar(scalar), tag: foreign, weight: 1, height: 1 };
        self.add(node, anchor)
    }

    fn begin(&mut self, is_mapping: bool, anchor: usize, tag: Option<&Tag>, place: Place) -> Result<(), YamlFault> {
        if self.open.len() >= MAX_HEIGHT as usize {
            return Err(too_deep(place));
        }
        let kind = if is_mapping { "map" } else { "seq" };
        let tag = tag.map(full_tag).filter(|tag| *tag != format!("{CORE}{kind}"));
        self.open.push(Open { place, tag, anchor, is_mapping, children: Vec::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlFault> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let Open { place, tag, anchor, is_mapping, children } = open;
        let height = 1 + children.iter().map(|id| self.nodes[id.0].height).max().unwrap_or(0);
        let kind = if is_mapping {
            let written = children.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            Kind::Mapping(self.mapping(written))
        } else {
            Kind::Sequence(children.clone())
        };
        let all: Vec<NodeId> = match &kind {
            Kind::Mapping(Mapping { merged: Some(merged), .. }) => {
                merged.iter().flat_map(|(key, value)| [*key, *value]).chain(children).collect()
            }
            _ => children,
        };
        let weight = all.iter().fold(1u64, |sum, id| sum.saturating_add(self.nodes[id.0].weight));
        if height > MAX_HEIGHT {
            return Err(too_deep(place));
        }
        if weight > MAX_EXPANSION.saturating_add(4 * self.nodes.len() as u64) {
            let message = "the aliases in this would make the file far too large".to_owned();
            return Err(YamlFault { place, message, hint: Some("write it out, without aliases of aliases") });
        }
        self.add(Node { place, kind, tag, weight, height }, anchor)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), YamlFault> {
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        self.attach(id);
        Ok(())
    }

    fn attach(&mut self, id: NodeId) {
        match self.open.last_mut() {
            Some(open) => open.children.push(id),
            None => self.root = Some(id),
        }
    }

    /// Finds keys that stand twice, and resolves `<<`.
    fn mapping(&mut self, written: Vec<(NodeId, NodeId)>) -> Mapping {
        let mut seen: HashMap<String, NodeId> = HashMap::new();
        let mut own = Vec::new();
        let mut merges = Vec::new();
        for (key, value) in &written {
            let Some(identity) = self.identity(*key) else {
                own.push((*key, *value));
                continue;
            };
            if let Some(first) = seen.get(&identity) {
                let line = self.nodes[first.0].place.line;
                let message = format!("the key `{}` stands twice; first on line {line}", &identity[1..]);
                let fault = YamlFault { place: self.nodes[key.0].place, message, hint: Some("remove one of the two") };
                self.fault(fault);
                continue;
            }
            if identity == "s<<" {
                merges.push(*value);
            } else {
                own.push((*key, *value));
            }
            seen.insert(identity, *key);
        }
        let merged = (!merges.is_empty()).then(|| self.merge(own, &merges, &mut seen));
        Mapping { written, merged }
    }

    /// Adds the entries that `<<` brings in; what is there first wins.
    fn merge(
        &mut self,
        mut own: Vec<(NodeId, NodeId)>,
        merges: &[NodeId],
        seen: &mut HashMap<String, NodeId>,
    ) -> Vec<(NodeId, NodeId)> {
        for merge in merges {
            let sources = match &self.nodes[merge.0].kind {
                Kind::Sequence(elements) => elements.clone(),
                _ => vec![*merge],
            };
            for source in sources {
                let Kind::Mapping(mapping) = &self.nodes[source.0].kind else {
                    let message = "`<<` can only merge a mapping, or a list of mappings".to_owned();
                    let fault = YamlFault { place: self.nodes[merge.0].place, message, hint: None };
                    self.fault(fault);
                    continue;
                };
                for (key, value) in mapping.entries().to_vec() {
                    let Some(identity) = self.identity(key) else { continue };
                    seen.entry(identity).or_insert_with(|| {
                        own.push((key, value));
                        key
                    });
                }
            }
        }
        own
    }

    /// Keeps a fault of the mapping that is being completed, which is the next node.
    fn fault(&mut self, fault: YamlFault) {
        self.faults.entry(NodeId(self.nodes.len())).or_default().push(fault);
    }

    /// What makes a key the same as another: its type and text. None for keys that are no scalars.
    fn identity(&self, key: NodeId) -> Option<String> {
        let Kind::Scalar(scalar) = &self.nodes[key.0].kind else { return None };
        Some(match scalar.value {
            Resolved::Null => "nnull".to_owned(),
            Resolved::Bool(value) => format!("b{value}"),
            Resolved::Int(value) => format!("i{value}"),
            Resolved::Huge(value) => format!("i{value}"),
            Resolved::Float(value) => format!("f{value}"),
            Resolved::Str => format!("s{}", scalar.text),
        })
    }

    fn finish(self) -> Result<Tree, YamlFault> {
        let Self { mut nodes, root, faults, .. } = self;
        let root = root.unwrap_or_else(|| {
            let scalar = Scalar { value: Resolved::Null, text: String::new(), plain: true };
            let place = Place { line: 1, column: 1 };
            nodes.push(Node { place, kind: Kind::Scalar(scalar), tag: None, weight: 1, height: 1 });
            NodeId(nodes.len() - 1)
        });
        Ok(Tree { nodes, root, faults })
    }
}

fn too_deep(place: Place) -> YamlFault {
    YamlFault { place, message: format!("nested deeper than {MAX_HEIGHT} levels"), hint: None }
}

const CORE: &str = "tag:yaml.org,2002:";

fn full_tag(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}

/// A scalar's value, and its tag where it is none of YAML's own.
pub(super) fn tagged_scalar(text: &str, plain: bool, tag: Option<&Tag>) -> (Resolved, Option<String>) {
    let untagged = || if plain { resolve::plain(text) } else { Resolved::Str };
    let Some(tag) = tag.map(full_tag) else { return (untagged(), None) };
    if tag.starts_with('!') {
        return (untagged(), Some(tag));
    }
    let value = match tag.strip_prefix(CORE) {
        Some("str") => Some(Resolved::Str),
        Some("bool") => resolve::boolean(text).map(Resolved::Bool),
        Some("int") => resolve::integer(text),
        Some("float") => resolve::float(text).map(Resolved::Float),
        Some("null") => resolve::null(text).then_some(Resolved::Null),
        _ => None,
    };
    match value {
        Some(value) => (value, None),
        None => (Resolved::Str, Some(tag)),
    }
}
