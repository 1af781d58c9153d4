//! What a plain YAML scalar means: to serde_yaml, which builds our values, and to PyYAML, with which the
//! tool before this one read the same file.
//!
//! Pure; knows nothing of documents.

use std::num::ParseIntError;

/// A scalar's value under serde_yaml's rules (YAML 1.2 core, with `0b`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    Int(i128),
    /// An integer above `i128::MAX`.
    Huge(u128),
    Float(f64),
    Str,
}

/// Resolves a plain, untagged scalar as serde_yaml does.
pub(super) fn plain(text: &str) -> Resolved {
    if text.is_empty() || null(text) {
        return Resolved::Null;
    }
    if let Some(value) = boolean(text) {
        return Resolved::Bool(value);
    }
    if let Some(value) = integer(text) {
        return value;
    }
    if !zeros_then_digits(text)
        && let Some(value) = float(text)
    {
        return Resolved::Float(value);
    }
    Resolved::Str
}

pub(super) fn null(text: &str) -> bool {
    matches!(text, "null" | "Null" | "NULL" | "~")
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

pub(super) fn integer(text: &str) -> Option<Resolved> {
    if let Some(value) = unsigned(text) {
        return Some(i128::try_from(value).map_or(Resolved::Huge(value), Resolved::Int));
    }
    negative(text).map(Resolved::Int)
}

fn unsigned(text: &str) -> Option<u128> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            if rest.starts_with(['+', '-']) {
                return None;
            }
            if let Ok(value) = u128::from_str_radix(rest, radix) {
                return Some(value);
            }
        }
    }
    if digits.starts_with(['+', '-']) || zeros_then_digits(text) {
        return None;
    }
    digits.parse().ok()
}

fn negative(text: &str) -> Option<i128> {
    let parse = |rest: &str, radix| -> Result<i128, ParseIntError> { i128::from_str_radix(&format!("-{rest}"), radix) };
    for (prefix, radix) in [("-0x", 16), ("-0o", 8), ("-0b", 2)] {
        if let Some(Ok(value)) = text.strip_prefix(prefix).map(|rest| parse(rest, radix)) {
            return Some(value);
        }
    }
    if zeros_then_digits(text) { None } else { text.parse().ok() }
}

pub(super) fn float(text: &str) -> Option<f64> {
    let digits = match text.strip_prefix('+') {
        Some(rest) if rest.starts_with(['+', '-']) => return None,
        Some(rest) => rest,
        None => text,
    };
    match (digits, text) {
        (".inf" | ".Inf" | ".INF", _) => return Some(f64::INFINITY),
        (_, "-.inf" | "-.Inf" | "-.INF") => return Some(f64::NEG_INFINITY),
        (_, ".nan" | ".NaN" | ".NAN") => return Some(f64::NAN),
        _ => {}
    }
    digits.parse::<f64>().ok().filter(|value| value.is_finite())
}

/// Reports a leading zero before further digits, which YAML 1.2 reads as text: `0777`.
fn zeros_then_digits(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
}

/// How the old tool (PyYAML, YAML 1.1) read a plain scalar, where that was something else than what it means here.
pub(super) fn read_otherwise(text: &str) -> Option<String> {
    let here = plain(text);
    if let Some(value) = py_bool(text) {
        return (here != Resolved::Bool(value)).then(|| value.to_string());
    }
    if let Some(value) = py_int(text) {
        return (value.is_none_or(|value| here != Resolved::Int(value))).then(|| match value {
            Some(value) => format!("the number {value}"),
            None => "a number".to_owned(),
        });
    }
    if py_float(text) {
        return (!matches!(here, Resolved::Float(_))).then(|| "a number".to_owned());
    }
    if py_timestamp(text) {
        return Some("a date".to_owned());
    }
    match here {
        Resolved::Bool(_) | Resolved::Int(_) | Resolved::Huge(_) | Resolved::Float(_) => Some("text".to_owned()),
        Resolved::Null | Resolved::Str => None,
    }
}

pub(super) fn py_bool(text: &str) -> Option<bool> {
    let mut chars = text.chars();
    let first = chars.next()?;
    let rest = chars.as_str();
    // Only `yes`, `Yes` and `YES`, never `yEs`.
    let lower = text.to_ascii_lowercase();
    let spelled = rest.chars().all(|c| c.is_ascii_lowercase())
        || (first.is_ascii_uppercase() && rest.chars().all(|c| c.is_ascii_uppercase()));
    match lower.as_str() {
        "yes" | "true" | "on" if spelled => Some(true),
        "no" | "false" | "off" if spelled => Some(false),
        _ => None,
    }
}

/// An integer of YAML 1.1; `Some(None)` where it is one but does not fit.
fn py_int(text: &str) -> Option<Option<i128>> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let all = |digits: &str, valid: fn(&u8) -> bool| {
        !digits.is_empty() && digits.as_bytes().iter().all(|b| valid(b) || *b == b'_')
    };
    let value = |digits: &str, radix| i128::from_str_radix(&digits.replace('_', ""), radix).ok().map(|v| sign * v);
    if let Some(rest) = digits.strip_prefix("0b") {
        return all(rest, |b| matches!(b, b'0' | b'1')).then(|| value(rest, 2));
    }
    if let Some(rest) = digits.strip_prefix("0x") {
        return all(rest, u8::is_ascii_hexdigit).then(|| value(rest, 16));
    }
    if digits == "0" {
        return Some(Some(0));
    }
    if let Some(rest) = digits.strip_prefix('0') {
        return all(rest, |b| matches!(b, b'0'..=b'7')).then(|| value(rest, 8));
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if !digits.contains(':') {
        return all(digits, u8::is_ascii_digit).then(|| value(digits, 10));
    }
    // Sexagesimal: 1:30 is 90.
    let mut parts = digits.split(':');
    let first = parts.next().filter(|first| all(first, u8::is_ascii_digit))?;
    let mut total = value(first, 10).map(i128::abs);
    for part in parts {
        let valid = matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
        let part: i128 = if valid { part.parse().ok()? } else { return None };
        total = total.and_then(|total| total.checked_mul(60)?.checked_add(part));
    }
    Some(total.map(|total| sign * total))
}

fn py_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let Some((whole, fraction)) = unsigned.split_once('.') else { return false };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if whole.contains(':') {
        // Sexagesimal: 1:30.5.
        return digits(fraction) && py_int(whole).is_some();
    }
    let (fraction, exponent) = match fraction.split_once(['e', 'E']) {
        Some((fraction, exponent)) => (fraction, Some(exponent)),
        None => (fraction, None),
    };
    let exponent_valid = exponent.is_none_or(|exponent| {
        exponent.strip_prefix(['-', '+']).is_some_and(|e| !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit()))
    });
    let whole_valid = if whole.is_empty() {
        text.starts_with('.') && fraction.starts_with(|c: char| c.is_ascii_digit())
    } else {
        whole.starts_with(|c: char| c.is_ascii_digit()) && digits(whole)
    };
    exponent_valid && whole_valid && digits(fraction)
}

/// A date, `2024-01-31`, alone or before a time.
fn py_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |part: Option<&[u8]>| part.is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    if bytes.len() == 10 {
        return digits(bytes.get(..4))
            && bytes[4] == b'-'
            && digits(bytes.get(5..7))
            && bytes[7] == b'-'
            && digits(bytes.get(8..));
    }
    let Some((date, time)) = text.split_once(['T', 't', ' ', '\t']) else { return false };
    let mut parts = date.split('-');
    let mut part = |lengths: std::ops::RangeInclusive<usize>| {
        parts.next().is_some_and(|part| lengths.contains(&part.len()) && digits(Some(part.as_bytes())))
    };
    part(4..=4)
        && part(1..=2)
        && part(1..=2)
        && parts.next().is_none()
        && time.split(':').count() >= 3
        && time.trim_start().starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_old_tool_read_otherwise() {
        for (text, was) in [
            ("yes", "true"),
            ("NO", "false"),
            ("On", "true"),
            ("off", "false"),
            ("0777", "the number 511"),
            ("-010", "the number -8"),
            ("1:30", "the number 90"),
            ("22:22", "the number 1342"),
            ("1_000", "the number 1000"),
            ("1:30.5", "a number"),
            ("1_0.5", "a number"),
            ("0o17", "text"),
            ("1e3", "text"),
            ("2024-01-31", "a date"),
            ("2024-1-3 10:00:00", "a date"),
        ] {
            assert_eq!(read_otherwise(text).as_deref(), Some(was), "{text}");
        }
        for text in [
            "",
            "~",
            "null",
            "true",
            "False",
            "y",
            "n",
            "yEs",
            "8080",
            "-1",
            "0",
            "0x1F",
            "1.5",
            "1.10",
            ".5",
            "1.5e+3",
            ".inf",
            "0888",
            "10.0.0.1",
            "80:8080",
            "1:99",
            "traefik/whoami:latest",
            "v1.2",
            "2024-01",
            "example.com",
        ] {
            assert_eq!(read_otherwise(text), None, "{text}");
        }
    }

    /// Texts that come near the borders of the rules.
    fn scalars() -> impl Strategy<Value = String> {
        prop_oneof![
            "[-+]?(0[xob]?)?[-+]?[0-9a-f_]{0,6}",
            "[-+]?[0-9]{0,45}",
            "[-+.]{0,2}[0-9]{0,3}[.eE:]?[-+]?[0-9_]{0,4}",
            "[-+]?\\.?(inf|Inf|INF|nan|NaN|NAN|infinity)",
            "(?i)(true|false|yes|no|on|off|null|~)",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn agrees_with_serde_yaml(text in scalars()) {
            // As a mapping's value, since some of these alone are document markers.
            let document = format!("k: {text}\n");
            let Ok(value) = serde_yaml::from_str::<serde_yaml::Value>(&document) else {
                // Too large for a Value, or not a scalar at all.
                return Ok(());
            };
            let value = &value["k"];
            match plain(&text) {
                Resolved::Null => prop_assert!(value.is_null()),
                Resolved::Bool(b) => prop_assert_eq!(value.as_bool(), Some(b)),
                Resolved::Int(i) => {
                    let got = value.as_u64().map(i128::from).or(value.as_i64().map(i128::from));
                    prop_assert_eq!(got, Some(i));
                }
                Resolved::Huge(_) => prop_assert!(false, "serde_yaml has no such number"),
                Resolved::Float(f) => {
                    prop_assert!(value.is_f64());
                    let got = value.as_f64().unwrap_or_default();
                    prop_assert!(got == f || got.is_nan() && f.is_nan());
                }
                Resolved::Str => prop_assert_eq!(value.as_str(), Some(text.as_str())),
            }
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = (plain(&text), read_otherwise(&text));
        }
    }
}
