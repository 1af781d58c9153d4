//! Any bytes as db.yml: never a panic, and never a refusal without a word.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let parsed = itsup_control::db::parse("db.yml", bytes);
    assert!(parsed.db.is_some() || parsed.errors().next().is_some());
    for diagnostic in &parsed.diagnostics {
        assert!(diagnostic.line > 0 && diagnostic.column > 0);
        assert!(!diagnostic.to_string().is_empty());
    }
});
