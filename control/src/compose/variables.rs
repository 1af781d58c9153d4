//! Which variables a text has compose fill in, and what of a `.env` has a say in them.
//!
//! Pure. It does not fill anything in: compose does. It only has to notice every change that matters.

use std::collections::BTreeSet;

/// Returns what of a `.env` these texts use, or `None` where they use nothing: the lines that assign their variables, or the whole
/// file where lines alone do not tell (values over several lines, or made from other variables).
pub(super) fn filled_in<'a>(env: &str, texts: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: BTreeSet<&str> = texts.flat_map(names).collect();
    if names.is_empty() {
        return None;
    }
    let lines: Vec<(&str, &str)> =
        env.lines().filter_map(assignment).filter(|(name, _)| names.contains(name)).collect();
    if spans_lines(env) || lines.iter().any(|(_, value)| value.contains('$')) {
        return Some(env.to_owned());
    }
    (!lines.is_empty()).then(|| lines.iter().map(|(name, value)| format!("{name}={value}\n")).collect())
}

/// Whether some value goes on in the next line.
fn spans_lines(env: &str) -> bool {
    env.lines().filter_map(assignment).any(|(_, value)| {
        let value = value.trim();
        ['"', '\''].into_iter().any(|quote| value.starts_with(quote) && value.matches(quote).count() % 2 == 1)
    })
}

/// Splits `NAME=value`, `NAME: value` and `export NAME=value`; `None` for anything else.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once(['=', ':'])?;
    let name = name.trim_end();
    (!name.is_empty() && !name.starts_with('#')).then_some((name, value))
}

/// The variables that a text names: `$X`, `${X}`, `${X:-other ${Y}}`. `$$` is a dollar sign.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('$')? + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('{').unwrap_or(rest);
            let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            rest = after;
            if !name.is_empty() {
                return Some(name);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_compose_finds_them() {
        for (text, found) in [
            ("", &[][..]),
            ("no $$DOLLAR $", &[]),
            ("$A-${B}", &["A", "B"]),
            ("${A:-x ${B:?no}}$$C$$$D", &["A", "B", "D"]),
            ("$5 ${}", &["5"]),
            ("ü$ü", &[]),
        ] {
            assert_eq!(names(text).collect::<Vec<_>>(), found, "{text}");
        }
    }

    #[test]
    fn only_what_is_used_counts() {
        for (env, text, counts) in [
            ("A=1\nB=2\n", "$A", Some("A=1\n")),
            ("A=1\nB=2\n", "$$A", None),
            ("A=1\n", "$C", None),
            (" export A = 1\n#B=2\n", "$A$B", Some("A= 1\n")),
            // What lines alone do not tell.
            ("A=${B}\nB=2\n", "$A", Some("A=${B}\nB=2\n")),
            ("A=\"1\n2\"\nB=2", "$B", Some("A=\"1\n2\"\nB=2")),
        ] {
            assert_eq!(filled_in(env, [text].into_iter()).as_deref(), counts, "{env:?} {text}");
        }
    }
}
