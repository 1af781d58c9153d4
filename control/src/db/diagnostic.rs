//! A fault in db.yml, with the place where it stands: what `validate` prints.
//!
//! Knows nothing of projects or YAML: only of lines and columns.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How grave a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be used.
    Error,
    /// It can, but may not mean what was meant.
    Warning,
}

/// A fault in a file, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The file as the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The source line, without its end.
    pub source: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The project that it stands in, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// The longest source line that is shown, in characters.
const SHOWN: usize = 160;

impl Diagnostic {
    /// Reports whether this is an error and not a warning.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Renders as compilers do: the place and the message, the source line with a caret, the hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Self { file, line, column, .. } = self;
        write!(f, "{file}:{line}:{column}: {severity}: {}", Printable(&self.message))?;
        let gutter = line.to_string().len();
        let (shown, caret) = window(&self.source, *column);
        if !shown.trim().is_empty() {
            write!(f, "\n {line} | {shown}")?;
            write!(f, "\n {:gutter$} | {:caret$}^", "", "")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n {:gutter$} = hint: {}", "", Printable(hint))?;
        }
        Ok(())
    }
}

/// The part of a source line that is shown, and how far the caret stands in it.
///
/// Tabs become spaces and control characters a replacement, so that the caret stands where it points
/// and no file can drive the terminal.
fn window(source: &str, column: usize) -> (String, usize) {
    let caret = column.saturating_sub(1);
    let skipped = if caret < SHOWN { 0 } else { caret - SHOWN / 2 };
    let mut shown: String = source.chars().skip(skipped).take(SHOWN).map(printable).collect();
    shown.truncate(shown.trim_end().len());
    (shown, caret - skipped)
}

fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            char::REPLACEMENT_CHARACTER
        }
        c => c,
    }
}

/// A text of which no character can drive the terminal.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, printable(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(source: &str, column: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            file: "db.yml".into(),
            line: 12,
            column,
            source: source.into(),
            message: "unknown key `passtrough`".into(),
            hint: Some("did you mean `passthrough`?".into()),
            project: Some("home".into()),
        }
    }

    #[test]
    fn renders_like_a_compiler() {
        insta::assert_snapshot!(diagnostic("        passtrough: true", 9), @r"
        db.yml:12:9: error: unknown key `passtrough`
         12 |         passtrough: true
            |         ^
            = hint: did you mean `passthrough`?
        ");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let text = diagnostic(&format!("{}X", "a".repeat(10_000)), 10_001).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1].find('X'), lines[2].find('^'));
        assert!(lines[1].len() < 200);
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let mut diagnostic = diagnostic("\tx: \u{1b}[2J", 2);
        diagnostic.message = "bad \u{1b}]0;title".into();
        assert!(!diagnostic.to_string().contains(['\u{1b}', '\t']));
    }

    #[test]
    fn a_column_past_the_end_is_harmless() {
        assert!(diagnostic("ab", usize::MAX).to_string().len() < 400);
    }

    #[test]
    fn serialises_for_programs() {
        let mut diagnostic = diagnostic("x", 1);
        diagnostic.hint = None;
        assert_eq!(
            serde_json::to_value(&diagnostic).unwrap(),
            serde_json::json!({
                "severity": "error", "file": "db.yml", "line": 12, "column": 1, "source": "x",
                "message": "unknown key `passtrough`", "project": "home",
            })
        );
    }
}
