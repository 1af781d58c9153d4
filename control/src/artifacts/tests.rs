use super::*;
use crate::db::parse;

fn project(services: &str) -> (Db, Stack) {
    let text = format!("projects: [{{name: Shop, services: [{services}]}}]");
    let db = parse("db.yml", text.as_bytes()).db.unwrap();
    let stack = compose::stack(&db.projects[0], &ProjectFiles::default());
    (db, stack)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_tried_takes_the_place_of_what_held_only_on_success() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::new(place.path());
    let folder = ProjectFolder::new(&root, "Shop");
    let (_, one) = project("{name: web, image: a:1}");
    let (_, two) = project("{name: web, image: a:2}");
    folder.stage(&one).unwrap();
    folder.commit().unwrap();
    folder.stage(&two).unwrap();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!((read(folder.compose()), read(folder.next())), (one.text(), two.text()));
    folder.discard().unwrap();
    assert_eq!(names(folder.path()), [COMPOSE]);
    assert_eq!(read(folder.compose()), one.text());
    folder.discard().unwrap();
}

#[test]
fn folders_of_volumes_are_made_and_what_is_there_stays() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::new(place.path());
    let folder = ProjectFolder::new(&root, "Shop");
    let (_, stack) = project("{name: web, image: a, volumes: [/data/deep, /etc/file, 'named:/x', './rel:/y']}");
    fs::create_dir_all(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/file"), "kept").unwrap();
    folder.stage(&stack).unwrap();
    assert_eq!(names(folder.path()), ["data", NEXT, "etc"]);
    assert!(folder.path().join("data/deep").is_dir());
    assert_eq!(fs::read_to_string(folder.path().join("etc/file")).unwrap(), "kept");
}

#[test]
fn what_is_read_is_what_containers_are_made_from() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::new(place.path());
    assert_eq!(Artifacts::read(&root, &Db::default()).unwrap(), Artifacts::default());
    let (db, stack) =
        project("{name: web, image: a, env_file: [one.env, gone.env], compose: {env_file: [{path: two.env}]}}");
    let folder = ProjectFolder::new(&root, "Shop");
    folder.stage(&stack).unwrap();
    for name in [".env", "one.env", "two.env", "other.env"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    fs::create_dir(root.upstream().join("old")).unwrap();
    fs::write(root.upstream().join("file"), "").unwrap();
    let artifacts = Artifacts::read(&root, &db).unwrap();
    assert_eq!(artifacts.folders.keys().collect::<Vec<_>>(), ["Shop", "old"]);
    let shop = artifacts.of("Shop").unwrap();
    assert_eq!((shop.compose.as_deref(), shop.next.as_deref()), (None, Some(&*stack.text())));
    assert_eq!(shop.files.env.as_deref(), Some(".env"));
    let read: Vec<(&str, &str)> = shop.files.env_files.iter().map(|(name, text)| (&**name, &**text)).collect();
    assert_eq!(read, [("one.env", "one.env"), ("two.env", "two.env")]);
}

#[test]
fn removing_keeps_what_is_the_users() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::new(place.path());
    let folder = ProjectFolder::new(&root, "Shop");
    let (_, stack) = project("{name: web, image: a, volumes: [/data]}");
    folder.stage(&stack).unwrap();
    folder.commit().unwrap();
    folder.remove().unwrap();
    assert_eq!(names(folder.path()), ["data"]);
    fs::remove_dir(folder.path().join("data")).unwrap();
    folder.remove().unwrap();
    assert!(!folder.path().exists());
    folder.remove().unwrap();
}
