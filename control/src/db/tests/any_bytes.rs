//! What holds of any document, and of any bytes at all: generated, collected, and mutated.

use proptest::prelude::*;
use serde_yaml::Value;

use super::*;
use crate::db::spans::Tree;

/// A document: scalars of every style, both kinds of collections in both styles, anchors and merges.
fn documents() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        "[a-z]{1,6}",
        "[-+]?[0-9]{1,4}(\\.[0-9]{1,3})?",
        "0[0-7]{1,3}|0x[0-9a-f]{1,4}|0o[0-7]{1,3}|[0-9]{1,2}:[0-5][0-9]",
        Just("~".to_owned()),
        Just("null".to_owned()),
        "true|false|yes|no|on|off|True|NO",
        "\"[a-zA-Z0-9 :#,{}\\[\\]é€]{0,8}\"",
        "'[a-zA-Z0-9 :#,{}\\[\\]\"]{0,8}'",
        "!!str [a-z0-9]{1,4}",
        Just("*base".to_owned()),
        Just("\"\\u00e9\\n\\t\\x41\"".to_owned()),
    ];
    let flow = scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec(inner, 0..4).prop_map(|items| {
                let entries: Vec<_> = items.iter().enumerate().map(|(n, item)| format!("k{n}: {item}")).collect();
                format!("{{{}}}", entries.join(", "))
            }),
        ]
    });
    let entry = prop_oneof![
        4 => flow.prop_map(|value| format!(" {value}\n")),
        1 => prop::collection::vec("[a-z0-9 :#-]{0,12}", 1..4).prop_map(|lines| {
            format!(" |\n{}", lines.iter().map(|line| format!("      x{line}\n")).collect::<String>())
        }),
        1 => prop::collection::vec("[a-z0-9]{1,8}", 1..4).prop_map(|lines| {
            format!(" >-\n{}", lines.iter().map(|line| format!("      {line}\n")).collect::<String>())
        }),
        1 => prop::collection::vec("[a-z0-9.]{1,8}", 1..4).prop_map(|items| {
            format!("\n{}", items.iter().map(|item| format!("    - {item} # a comment\n")).collect::<String>())
        }),
        1 => Just("\n      <<: *base\n      k9: own\n".to_owned()),
        1 => Just("\n".to_owned()),
    ];
    prop::collection::vec(entry, 1..6).prop_map(|entries| {
        let body: String = entries.iter().enumerate().map(|(n, entry)| format!("  key{n}:{entry}")).collect();
        format!("base: &base {{k0: 1, k9: ~}}\nbody:\n{body}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// The tree that the checks look at is the document that serde_yaml reads.
    #[test]
    fn both_parsers_agree(text in documents()) {
        let mut value: Value = serde_yaml::from_str(&text).unwrap();
        value.apply_merge().unwrap();
        let tree = Tree::parse(&text).unwrap();
        prop_assert_eq!(tree.disagreement(&serde_yaml::from_str(&text).unwrap()), None);
        prop_assert_eq!(tree.value(tree.root()), value);
    }

    /// Every place that a diagnostic names is in the file.
    #[test]
    fn places_are_in_the_file(text in documents()) {
        let text = format!("{text}projects: [{{name: a, domain: [x], entrypoint: {{}}}}]\n");
        for diagnostic in parse("db.yml", text.as_bytes()).diagnostics {
            let line = text.lines().nth(diagnostic.line - 1);
            prop_assert_eq!(line, Some(diagnostic.source.as_str()));
            prop_assert!(diagnostic.column <= diagnostic.source.chars().count() + 1);
        }
    }
}

/// Checks what must hold of any bytes at all.
fn holds(bytes: &[u8]) {
    let parsed = parse("db.yml", bytes);
    for diagnostic in &parsed.diagnostics {
        assert!(diagnostic.line > 0 && diagnostic.column > 0);
        assert!(!diagnostic.to_string().is_empty());
        // What passes every check can be built.
        assert!(!diagnostic.message.starts_with("cannot be built"), "{diagnostic}");
    }
    assert!(parsed.db.is_some() || parsed.errors().next().is_some(), "refused without a word");
    let Some(db) = parsed.db else { return };
    for project in &db.projects {
        assert!(!project.name.contains(['/', '\0']) && !project.name.starts_with('.'));
    }
    if let (Ok(text), true) = (std::str::from_utf8(bytes), parsed.diagnostics.iter().all(|d| !d.is_error())) {
        let text = text.trim_start_matches('\u{feff}');
        assert!(serde_yaml::from_str::<serde::de::IgnoredAny>(text).is_ok());
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/db_yml");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
    files.sort_by_key(|file| file.file_name());
    let read = |file: std::fs::DirEntry| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
    files.into_iter().map(read).collect()
}

#[test]
fn the_corpus_is_harmless() {
    let corpus = corpus();
    assert!(corpus.len() > 10);
    for (name, bytes) in corpus {
        holds(&bytes);
        // The two parsers agree on all of the corpus that is YAML at all, but for one: serde_yaml confuses
        // anchors after a name that is used twice.
        if let Ok(text) = std::str::from_utf8(&bytes)
            && let (Ok(read), Ok(tree)) = (serde_yaml::from_str(text), Tree::parse(text))
        {
            assert_eq!(tree.disagreement(&read).is_some(), name == "anchor_twice", "{name}");
        }
    }
}

#[test]
fn what_the_parsers_read_differently_is_refused() {
    let parsed = parse("db.yml", b"a: &x 1\nb: &x 2\nc: &y 3\nx-d: *x\nprojects: []\n");
    assert!(parsed.db.is_none());
    assert!(rendered(&parsed).contains("can be read in two ways"));
}

/// Mutates the corpus for some seconds, always in the same way; `DB_FUZZ_ROUNDS` makes it more.
#[test]
fn mutations_never_panic() {
    let rounds = std::env::var("DB_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6_000);
    let mut random =
        Random(std::env::var("DB_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x1757_5550));
    let corpus = corpus();
    for _ in 0..rounds {
        let mut bytes = corpus[random.below(corpus.len())].1.clone();
        for _ in 0..=random.below(6) {
            random.mutate(&mut bytes, &corpus);
        }
        bytes.truncate(4_000);
        holds(&bytes);
    }
}

/// A small generator (splitmix64), so that every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, corpus: &[(String, Vec<u8>)]) {
        const TOKENS: &[&str] = &[
            "{",
            "}",
            "[",
            "]",
            ": ",
            "- ",
            "? ",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "!x ",
            "|\n",
            ">-\n",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "%TAG ! x\n",
            "\"",
            "'",
            "#",
            "\t",
            "\r\n",
            "\r",
            "\n",
            "\n\n",
            "\u{feff}",
            "\u{2028}",
            "\u{85}",
            "\\",
            "\0",
            "~",
            "null",
            ",",
            "!!int ",
            "!<x> ",
            "&",
            "*",
            "\u{1f600}",
            "0o7",
            "1e3",
            " ",
            "  ",
            "@",
            "`",
            "<<",
        ];
        let at = self.below(bytes.len() + 1);
        match self.below(6) {
            0 if at < bytes.len() => bytes[at] = self.next() as u8,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => {
                let other = &corpus[self.below(corpus.len())].1;
                let from = self.below(other.len());
                let to = (from + self.below(60)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            3 => {
                let to = (at + self.below(30)).min(bytes.len());
                bytes.drain(at..to);
            }
            _ => {
                let token = TOKENS[self.below(TOKENS.len())];
                bytes.splice(at..at, token.bytes());
            }
        }
    }
}
