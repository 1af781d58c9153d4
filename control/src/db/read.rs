//! A document as serde_yaml hands it out, to compare with the tree of [`super::spans`].

/// A document as serde_yaml reads it: everything that it hands out, keys that stand twice included.
#[derive(Debug)]
pub(super) enum Read {
    Null,
    Bool(bool),
    Int(i128),
    Huge(u128),
    Float(f64),
    Str(String),
    Sequence(Vec<Read>),
    Mapping(Vec<(Read, Read)>),
    Tagged(Box<Read>),
}

impl<'de> serde::Deserialize<'de> for Read {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadVisitor)
    }
}

struct ReadVisitor;

impl<'de> serde::de::Visitor<'de> for ReadVisitor {
    type Value = Read;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Read, E> {
        Ok(Read::Null)
    }

    fn visit_none<E>(self) -> Result<Read, E> {
        Ok(Read::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Read, E> {
        Ok(Read::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Read, E> {
        Ok(Read::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Read, E> {
        Ok(Read::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Read, E> {
        Ok(Read::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Read, E> {
        Ok(i128::try_from(value).map_or(Read::Huge(value), Read::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Read, E> {
        Ok(Read::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Read, E> {
        Ok(Read::Str(value.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut data: A) -> Result<Read, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = data.next_element()? {
            elements.push(element);
        }
        Ok(Read::Sequence(elements))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut data: A) -> Result<Read, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = data.next_entry()? {
            entries.push(entry);
        }
        Ok(Read::Mapping(entries))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, data: A) -> Result<Read, A::Error> {
        use serde::de::VariantAccess;
        let (_tag, contents) = data.variant::<String>()?;
        Ok(Read::Tagged(Box::new(contents.newtype_variant()?)))
    }
}
