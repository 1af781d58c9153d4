//! `.env`: lines of `NAME=value`, read strictly.
//!
//! Knows nothing of what the variables mean. Values are taken as they stand: `$` fills nothing in and no
//! command is run. A fault is reported with its line, and the others after it too.

use std::collections::BTreeMap;

/// The variables of one `.env`, each with its line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    values: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    text: String,
    line: usize,
}

/// What is wrong with one line of a `.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFault {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl EnvFile {
    /// Reads a whole file; all its faults at once.
    pub fn parse(bytes: &[u8]) -> Result<EnvFile, Vec<LineFault>> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut values = BTreeMap::<String, Value>::new();
        let mut faults = Vec::new();
        for (index, raw) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = index + 1;
            match parse_line(raw) {
                Ok(None) => {}
                Ok(Some((name, text))) => {
                    if let Some(first) = values.get(&name) {
                        faults.push(LineFault {
                            line,
                            message: format!("{name} is set twice, first on line {}", first.line),
                            hint: Some("keep one of the two lines".into()),
                        });
                        continue;
                    }
                    values.insert(name, Value { text, line });
                }
                Err((message, hint)) => faults.push(LineFault { line, message, hint }),
            }
        }
        if faults.is_empty() { Ok(EnvFile { values }) } else { Err(faults) }
    }

    /// Returns a variable's value and its line.
    pub fn find(&self, name: &str) -> Option<(&str, usize)> {
        self.values.get(name).map(|value| (value.text.as_str(), value.line))
    }

    /// The names that are set, with their lines.
    pub fn names(&self) -> impl Iterator<Item = (&str, usize)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.line))
    }
}

type Problem = (String, Option<String>);

/// One line without its `\n`: nothing, or a name and a value.
fn parse_line(raw: &[u8]) -> Result<Option<(String, String)>, Problem> {
    let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
    let text = std::str::from_utf8(raw).map_err(|_| ("this line is not UTF-8".to_owned(), None))?;
    if let Some(found) = text.chars().find(|c| c.is_control() && *c != '\t') {
        return Err((format!("control character {:?} in this line", found), None));
    }
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let text = match text.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => text,
    };
    let Some((name, value)) = text.split_once('=') else {
        return Err((format!("`{text}` has no `=`"), Some("write NAME=value, or # in front of a comment".into())));
    };
    if name != name.trim_end() || value.starts_with([' ', '\t']) && !value.trim().is_empty() {
        return Err(("a space beside the `=`".into(), Some(format!("write {}={}", name.trim_end(), value.trim()))));
    }
    if !is_name(name) {
        let hint = "a name has letters, digits and underscores, and does not begin with a digit";
        return Err((format!("`{name}` is not a variable name"), Some(hint.into())));
    }
    Ok(Some((name.to_owned(), parse_value(value)?)))
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The value: in single quotes as it stands, in double quotes with escapes, bare up to a comment.
fn parse_value(value: &str) -> Result<String, Problem> {
    let (text, rest) = match value.chars().next() {
        Some('\'') => single_quoted(&value[1..])?,
        Some('"') => double_quoted(&value[1..])?,
        _ => return bare(value),
    };
    let rest_trimmed = rest.trim_start();
    if rest_trimmed.is_empty() || rest_trimmed.starts_with('#') && rest_trimmed.len() < rest.len() {
        return Ok(text);
    }
    Err((format!("`{rest_trimmed}` after the closing quote"), Some("put the whole value in the quotes".into())))
}

fn single_quoted(text: &str) -> Result<(String, &str), Problem> {
    match text.split_once('\'') {
        Some((value, rest)) => Ok((value.to_owned(), rest)),
        None => Err(unclosed('\'')),
    }
}

fn double_quoted(text: &str) -> Result<(String, &str), Problem> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, plain @ ('"' | '\\' | '$' | '`'))) => value.push(plain),
                Some((_, other)) => {
                    let hint = r#"\n, \r, \t, \", \\ and \$ are known; in single quotes a backslash is itself"#;
                    return Err((format!("unknown escape `\\{other}`"), Some(hint.into())));
                }
                None => return Err(unclosed('"')),
            },
            other => value.push(other),
        }
    }
    Err(unclosed('"'))
}

fn unclosed(quote: char) -> Problem {
    (format!("the quote {quote} is never closed"), Some("a value ends on the line it begins on".into()))
}

fn bare(value: &str) -> Result<String, Problem> {
    let end = value
        .char_indices()
        .find(|(at, c)| *c == '#' && (*at == 0 || value[..*at].ends_with([' ', '\t'])))
        .map_or(value.len(), |(at, _)| at);
    let value = value[..end].trim_end();
    if let Some(quote) = value.chars().find(|c| matches!(c, '"' | '\'')) {
        return Err((format!("a {quote} inside a bare value"), Some("put the whole value in quotes".into())));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Result<String, String> {
        match EnvFile::parse(text.as_bytes()) {
            Ok(file) => Ok(file.find("A").map(|(value, _)| value.to_owned()).unwrap_or_else(|| "(unset)".into())),
            Err(faults) => {
                Err(faults.into_iter().map(|f| format!("{}: {}", f.line, f.message)).collect::<Vec<_>>().join("; "))
            }
        }
    }

    #[test]
    fn values() {
        for (text, wanted) in [
            ("A=b", "b"),
            ("A=", ""),
            ("A= ", ""),
            ("  A=b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b\r\n", "b"),
            ("\u{feff}A=b", "b"),
            ("# A=b", "(unset)"),
            ("\r\n\r\nA=b\r\n", "b"),
            ("A=b # comment", "b"),
            ("A=b#c", "b#c"),
            ("A=# comment", ""),
            ("A=a b", "a b"),
            ("A=a=b", "a=b"),
            ("A='a # \\n $b'", "a # \\n $b"),
            ("A='a' # comment", "a"),
            (r#"A="a\n\"\\\$\t" "#, "a\n\"\\$\t"),
            ("A=$HOME", "$HOME"),
            ("A=[::]:80", "[::]:80"),
            ("A=\"\"", ""),
            ("exports=1", "(unset)"),
        ] {
            assert_eq!(one(text).as_deref(), Ok(wanted), "{text:?}");
        }
    }

    #[test]
    fn faults_name_their_line() {
        for (text, wanted) in [
            ("A", "1: `A` has no `=`"),
            ("\nA =b", "2: a space beside the `=`"),
            ("A= b", "1: a space beside the `=`"),
            ("1A=b", "1: `1A` is not a variable name"),
            ("A-B=b", "1: `A-B` is not a variable name"),
            ("=b", "1: `` is not a variable name"),
            ("A='b", "1: the quote ' is never closed"),
            ("A=\"b", "1: the quote \" is never closed"),
            ("A=\"b\\", "1: the quote \" is never closed"),
            ("A='b'c", "1: `c` after the closing quote"),
            ("A='b'#c", "1: `#c` after the closing quote"),
            (r#"A="\x""#, "1: unknown escape `\\x`"),
            ("A=b'c", "1: a ' inside a bare value"),
            ("A=1\nB=2\nA=3", "3: A is set twice, first on line 1"),
            ("A\nB", "1: `A` has no `=`; 2: `B` has no `=`"),
            ("A=a\u{7}", "1: control character '\\u{7}' in this line"),
        ] {
            assert_eq!(one(text), Err(wanted.into()), "{text:?}");
        }
        assert_eq!(EnvFile::parse(b"A=1\nB=\xff").unwrap_err()[0].line, 2);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EnvFile::parse(&bytes);
        }

        #[test]
        fn single_quotes_keep_every_printable_value(value in "[^'\\p{Cc}]{0,40}") {
            let file = EnvFile::parse(format!("A='{value}'").as_bytes()).unwrap();
            prop_assert_eq!(file.find("A"), Some((value.as_str(), 1)));
        }
    }
}
