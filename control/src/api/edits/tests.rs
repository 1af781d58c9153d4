use super::*;

fn db() -> Value {
    json!({"projects": [{"name": "a", "domain": "a.example.com", "services": [
        {"name": "web", "image": "x", "env": {"A": "1"}},
        {"name": "old", "image": "y", "env": ["B=2", "C"], "volumes": ["/host:/x"]}]}]})
}

#[test]
fn what_was_read_can_be_sent_back_and_changes_nothing() {
    let mut value = db();
    let read = with_defaults(&value["projects"][0]);
    assert_eq!(read["services"][0]["port"], 8080);
    assert_eq!(read["services"][1]["env"], json!({"B": "2", "C": ""}));
    put_project(&mut value, read).unwrap();
    assert_eq!(value, db());
    for service in services_of(&value["projects"][0].clone()) {
        assert_eq!(service["project"], "a");
        put_service(&mut value, "a", service).unwrap();
    }
    assert_eq!(value, db());
}

#[test]
fn changes() {
    let mut value = db();
    patch_service(&mut value, "a", "web", &json!({"port": 81, "image": null, "env": {"A": null, "Z": 1}})).unwrap();
    assert_eq!(value["projects"][0]["services"][0], json!({"name": "web", "env": {"Z": 1}, "port": 81}));
    let env = json!({"B": "3", "C": null, "D": true});
    set_env(&mut value, "a", "old", env.as_object().unwrap()).unwrap();
    assert_eq!(value["projects"][0]["services"][1]["env"], json!(["B=3", "D=true"]));
    put_service(&mut value, "a", json!({"name": "new"})).unwrap();
    delete_service(&mut value, "a", "old").unwrap();
    assert!(service(&value, "a", "old").is_err() && service(&value, "a", "new").is_ok());
    put_project(&mut value, json!({"name": "b"})).unwrap();
    delete_project(&mut value, "a").unwrap();
    assert_eq!(value, json!({"projects": [{"name": "b"}]}));
    let mut empty = Value::Null;
    put_project(&mut empty, json!({"name": "b"})).unwrap();
    assert_eq!(empty, value);
    for fault in [
        patch_project(&mut value, "x", &json!({})),
        patch_project(&mut value, "b", &json!([])),
        patch_project(&mut value, "b", &json!({"name": "c"})),
        delete_project(&mut value, "x"),
        put_service(&mut value, "x", json!({"name": "y"})),
        put_project(&mut value, json!([])),
    ] {
        assert!(fault.is_err());
    }
}

#[test]
fn secrets_are_masked_wherever_they_stand() {
    let project = json!({"name": "a", "webhook": {"secret": "s", "branch": "main"}, "access": {"basic": ["u:h"]},
        "services": [{"env": {"A": 1}, "compose": {"environment": ["B=2"]}, "image": "i"}]});
    let shown = shown(project, false);
    let text = shown.to_string();
    assert!(!text.contains("u:h") && !text.contains("B=2") && !text.contains(":1"), "{text}");
    assert_eq!(shown["webhook"], json!({"secret": "***", "branch": "main"}));
    assert_eq!(shown["services"][0]["image"], "i");
}

#[test]
fn root_on_the_host_is_not_given_away() {
    let refused = |change: fn(&mut Value)| {
        let mut after = db();
        change(&mut after["projects"][0]["services"][1]);
        no_new_power(&db(), &after).is_err()
    };
    assert!(!refused(|service| service["port"] = json!(1)));
    assert!(!refused(|service| service["volumes"] = json!(["/host:/x", "/data", "named:/data"])));
    assert!(refused(|service| service["volumes"] = json!(["/:/x"])));
    assert!(refused(|service| service["volumes"] = json!(["./../../x:/x"])));
    assert!(refused(|service| service["volumes"] = json!(["~/x:/x"])));
    assert!(refused(|service| service["volumes"] = json!(["${HOME}:/x"])));
    assert!(refused(|service| service["compose"] = json!({"privileged": true})));
    assert!(refused(|service| service["additional_properties"] = json!({"privileged": true})));
}
