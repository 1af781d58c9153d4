use proptest::prelude::*;
use serde_json::json;

use super::*;

const TEXT: &str = r#"# The file's own comment.
projects:
  # Before a.
  - name: a # the first
    domain: 'a.example.com'   # quoted so
    services:
      - name: web
        image: "nginx:1.27"

        # about the port
        port: 80
        env: { A: 1.10, B: "x" } # on one line
      - name: api # second service
        env: # many
          ONE: one # 1
          # between
          TWO: "two"
  # Before b.
  - description: second

    name: b
    aliases: [b.example.com, "*.b.example.com"]
# The end.
"#;

fn edited(text: &str, change: impl FnOnce(&mut Value)) -> String {
    let source = Source::parse(text).unwrap();
    let mut wanted = source.value().clone();
    change(&mut wanted);
    source.rewrite(&wanted).unwrap()
}

/// The lines that are gone, and those that are new.
fn diff(old: &str, new: &str) -> String {
    let gone = old.lines().filter(|line| !new.lines().any(|other| other == *line)).map(|line| format!("-{line}\n"));
    let came = new.lines().filter(|line| !old.lines().any(|other| other == *line)).map(|line| format!("+{line}\n"));
    gone.chain(came).collect()
}

#[test]
fn a_scalar_changes_alone_and_keeps_its_quotes() {
    let new = edited(TEXT, |value| {
        value["projects"][0]["domain"] = json!("new.example.com");
        value["projects"][0]["services"][0]["image"] = json!("nginx:1.28");
        value["projects"][0]["services"][0]["env"]["B"] = json!("y");
        value["projects"][0]["services"][0]["port"] = json!(81);
    });
    insta::assert_snapshot!(diff(TEXT, &new), @r#"
    -    domain: 'a.example.com'   # quoted so
    -        image: "nginx:1.27"
    -        port: 80
    -        env: { A: 1.10, B: "x" } # on one line
    +    domain: 'new.example.com'   # quoted so
    +        image: "nginx:1.28"
    +        port: 81
    +        env: { A: 1.10, B: "y" } # on one line
    "#);
}

#[test]
fn keys_come_and_go() {
    let new = edited(TEXT, |value| {
        let api = value["projects"][0]["services"][1]["env"].as_object_mut().unwrap();
        api.remove("ONE");
        api.insert("THREE".into(), json!("yes"));
        let web = value["projects"][0]["services"][0].as_object_mut().unwrap();
        web["env"].as_object_mut().unwrap().remove("A");
        web["env"]["C"] = json!("a: b");
        web.insert("health".into(), json!({"path": "/up"}));
        value["projects"][1].as_object_mut().unwrap().remove("description");
    });
    insta::assert_snapshot!(new, @r#"
    # The file's own comment.
    projects:
      # Before a.
      - name: a # the first
        domain: 'a.example.com'   # quoted so
        services:
          - name: web
            image: "nginx:1.27"

            # about the port
            port: 80
            env: { B: "x", C: "a: b" } # on one line
            health:
              path: /up
          - name: api # second service
            env: # many
              # between
              TWO: "two"
              THREE: "yes"
      # Before b.
      - name: b
        aliases: [b.example.com, "*.b.example.com"]
    # The end.
    "#);
}

#[test]
fn elements_come_and_go() {
    let new = edited(TEXT, |value| {
        value["projects"][1]["aliases"] = json!(["*.b.example.com"]);
        value["projects"][0]["services"].as_array_mut().unwrap().remove(0);
        let new = json!({"name": "c", "services": [{"name": "x", "env": {"N": 1, "S": "1"}, "volumes": ["/a"]}]});
        value["projects"].as_array_mut().unwrap().push(new);
    });
    insta::assert_snapshot!(new, @r##"
    # The file's own comment.
    projects:
      # Before a.
      - name: a # the first
        domain: 'a.example.com'   # quoted so
        services:
          - name: api # second service
            env: # many
              ONE: one # 1
              # between
              TWO: "two"
      # Before b.
      - description: second

        name: b
        aliases: ["*.b.example.com"]
      - name: c
        services:
          - name: x
            env:
              N: 1
              S: "1"
            volumes:
              - /a
    # The end.
    "##);
    let new = edited(TEXT, |value| drop(value["projects"].as_array_mut().unwrap().remove(0)));
    insta::assert_snapshot!(new, @r##"
    # The file's own comment.
    projects:
      # Before a.
      # Before b.
      - description: second

        name: b
        aliases: [b.example.com, "*.b.example.com"]
    # The end.
    "##);
}

#[test]
fn every_way_of_writing_nothing() {
    let project = json!({"projects": [{"name": "a"}]});
    for text in [
        "",
        "# a comment",
        "# a comment\n",
        "projects:\n",
        "projects: []\n",
        "projects: [] # none\n",
        "projects: ~\n",
        "projects:",
        "{}",
    ] {
        let source = Source::parse(text).unwrap();
        let new = source.rewrite(&project).unwrap();
        assert_eq!(Source::parse(&new).unwrap().value(), &project, "{text:?}: {new}");
        assert_eq!(new.matches('#').count(), text.matches('#').count(), "{text:?}: {new}");
        let back = Source::parse(&new).unwrap().rewrite(&json!({"projects": []})).unwrap();
        assert_eq!(Source::parse(&back).unwrap().value(), &json!({"projects": []}), "{text:?}: {back}");
    }
}

#[test]
fn windows_lines_and_wide_letters_are_kept() {
    let text = "projects:\r\n- name: größe # ü\r\n  description: 'schön'\r\n- name: b\r\n";
    let new = edited(text, |value| {
        value["projects"][0]["description"] = json!("schöner");
        value["projects"][0]["enabled"] = json!(false);
        value["projects"].as_array_mut().unwrap().push(json!({"name": "c", "domain": "c.example.com"}));
    });
    assert_eq!(
        new,
        "projects:\r\n- name: größe # ü\r\n  description: 'schöner'\r\n  enabled: false\r\n- name: b\r\n- name: c\r\n  domain: c.example.com\r\n"
    );
}

#[test]
fn what_stands_in_two_places_is_never_changed_in_one() {
    let text = "projects:\n  - &base\n    name: a\n    domain: a.example.com\n  - <<: *base\n    name: b\n";
    let source = Source::parse(text).unwrap();
    assert_eq!(source.value()["projects"][1], json!({"name": "b", "domain": "a.example.com"}));
    let mut wanted = source.value().clone();
    wanted["projects"][1]["domain"] = json!("b.example.com");
    let new = source.rewrite(&wanted).unwrap();
    assert_eq!(new, format!("{text}    domain: b.example.com\n"));
    let mut wanted = source.value().clone();
    wanted["projects"][0]["domain"] = json!("c.example.com");
    assert_eq!(source.rewrite(&wanted), Err(EditError::Unsafe), "b would change too");
}

#[test]
fn block_texts_and_comments_after_them_stay() {
    let text =
        "a:\n  text: |\n    one # no comment\n    two\n  # about more\n  more: 1\nb: >-\n  folded\n  text\nc: 1\n";
    let new = edited(text, |value| {
        value["a"]["more"] = json!(2);
        value["a"]["new"] = json!("x");
        value["c"] = json!([1, "two"]);
    });
    let want = text.replace("  more: 1\n", "  more: 2\n  new: x\n").replace("c: 1\n", "c:\n  - 1\n  - two\n");
    assert_eq!(new, want);
    let new = edited(text, |value| {
        value["a"]["text"] = json!("short");
        drop(value.as_object_mut().unwrap().remove("b"));
    });
    assert!(new.contains("# about more\n") && !new.contains("folded"), "{new}");
}

fn scalars() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "yes",
            "no",
            "on",
            "null",
            "~",
            "1.10",
            "0x1f",
            "1_000",
            "12:30",
            "- a",
            "a: b",
            "a #b",
            "",
            " a",
            "#",
            "'",
            "\"",
            "\n",
            "\u{7}",
            "\u{85}",
            "&a",
            "*a",
            "!t",
            "%x",
            "<<",
            "?",
            "|",
            "127.0.0.1",
            "nginx:1.27",
        ])
        .prop_map(Value::from),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    scalars().prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d<~ ]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is wanted of whatever there is: done exactly, or refused; and a comment at the top is never lost.
    #[test]
    fn an_edit_says_what_is_wanted(first in values(), second in values()) {
        let text = format!("# top\n{}\n", render::root(&json!({"root": first}), "\n"));
        let source = Source::parse(&text).unwrap();
        prop_assert_eq!(source.value(), &json!({"root": first}));
        let wanted = json!({"root": second});
        let new = source.rewrite(&wanted);
        prop_assert!(new.is_ok(), "{} -> {}: {:?}", text, wanted, new);
        prop_assert!(new.unwrap().starts_with("# top\n"));
    }
}
