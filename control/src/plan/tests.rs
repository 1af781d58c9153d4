use std::time::Duration;

use super::*;
use crate::compose::ProjectFiles;
use crate::observed::ContainerId;
use crate::status::InFlightReport;
use crate::testing::{container, observed};

const SHOP: &str = "projects: [{name: Shop, domain: shop.test, entrypoint: web, before: [migrate], services: [\
    {name: web, image: app:1, replicas: 2, depends_on: [db]}, {name: db, image: pg:16}]}]";

/// A world that a plan is made for.
struct World {
    db: Db,
    artifacts: Artifacts,
    containers: Vec<Container>,
    images: Images,
    pins: Pins,
    serving: Option<Db>,
    only: Option<&'static str>,
    force: bool,
    prune: bool,
}

fn read(text: &str) -> Db {
    let parsed = db::parse("db.yml", text.as_bytes());
    assert!(parsed.is_valid(), "{:?}", parsed.diagnostics);
    parsed.db.unwrap()
}

impl World {
    /// db.yml, and nothing of it there.
    fn new(text: &str) -> World {
        World {
            db: read(text),
            artifacts: Artifacts::default(),
            containers: Vec::new(),
            images: Images::default(),
            pins: Pins::default(),
            serving: None,
            only: None,
            force: false,
            prune: false,
        }
    }

    /// db.yml, and all of it there as it says.
    fn applied(text: &str) -> World {
        let mut world = World::new(text);
        for (project, stack) in stacks(&world.db, &world.artifacts, &world.pins) {
            world.write(&project, &stack.text());
            for service in &stack.services {
                for number in 0..service.replicas {
                    let id = format!("{}-{number}", service.compose_service);
                    let mut one = container(&id, &stack.compose_name, &service.compose_service);
                    one.image = service.image.clone();
                    one.image_id = format!("sha256:{}", service.image);
                    one.config_hash = Some(service.config.as_str().to_owned());
                    world.images.0.insert(one.image.clone(), one.image_id.clone());
                    world.containers.push(one);
                }
            }
        }
        world
    }

    fn write(&mut self, project: &str, text: &str) {
        let folder = Folder { compose: Some(text.into()), next: None, files: ProjectFiles::default() };
        self.artifacts.folders.insert(project.into(), folder);
    }

    /// The same world under another db.yml.
    fn then(mut self, from: &str, to: &str) -> World {
        let text = SHOP.replace(from, to);
        assert_ne!(text, SHOP);
        self.db = read(&text);
        self
    }

    fn plan(&self) -> Plan {
        plan(&Inputs {
            db: &self.db,
            stacks: &stacks(&self.db, &self.artifacts, &self.pins),
            observed: &observed(self.containers.clone()),
            images: &self.images,
            artifacts: &self.artifacts,
            network: true,
            serving: self.serving.as_ref(),
            only: self.only,
            force: self.force,
            prune: self.prune,
        })
    }

    /// The step and the reasons of each service of the first project.
    fn steps(&self) -> Vec<String> {
        let plan = self.plan();
        let told = |service: &ServicePlan| {
            let reasons: Vec<String> = service.reasons.iter().map(ToString::to_string).collect();
            let text = format!("{} {} {}", service.service, service.step, reasons.join("; "));
            text.trim_end().to_owned()
        };
        plan.projects.first().map(|project| project.services.iter().map(told).collect()).unwrap_or_default()
    }
}

#[test]
fn what_is_not_there_is_started_dependencies_first() {
    let world = World::new(SHOP);
    let plan = world.plan();
    assert_eq!(world.steps(), ["db start containers: 0 -> 1", "web start containers: 0 -> 2"]);
    assert_eq!((plan.projects[0].change, plan.projects[0].writes), (Change::Create, true));
    assert_eq!(plan.projects[0].pulls, ["app:1", "pg:16"]);
    assert_eq!(plan.projects[0].before, ["migrate"]);
    assert!(plan.has_changes() && !plan.create_network);
}

#[test]
fn what_is_there_as_it_should_be_is_left_alone() {
    let world = World::applied(SHOP);
    let plan = world.plan();
    assert_eq!(world.steps(), ["db no change", "web no change"]);
    assert!(!plan.has_changes() && plan.projects[0].before.is_empty(), "{plan:?}");
}

#[test]
fn only_what_has_changed_is_touched() {
    for (from, to, steps) in [
        ("app:1", "app:2", ["db no change", "web roll over image: app:1 -> app:2"]),
        ("pg:16", "pg:17", ["db recreate in place image: pg:16 -> pg:17", "web no change"]),
        ("app:1,", "app:1, env: {A: b},", ["db no change", "web roll over env.A: added, b"]),
        (
            "app:1,",
            "app:1, rollout: {strategy: recreate}, env: {A: b},",
            ["db no change", "web recreate in place env.A: added, b"],
        ),
        ("replicas: 2", "replicas: 3", ["db no change", "web start containers: 2 -> 3"]),
        ("replicas: 2", "replicas: 1", ["db no change", "web roll over containers: 2 -> 1"]),
    ] {
        assert_eq!(World::applied(SHOP).then(from, to).steps(), steps, "{to}");
    }
}

#[test]
fn a_moved_image_is_seen_by_its_id() {
    let mut world = World::applied(SHOP);
    world.images.0.insert("app:1".into(), "sha256:0123456789abcdef".into());
    assert_eq!(world.steps(), ["db no change", "web roll over image id: app:1 -> 0123456789ab"]);
    // One that is not here any more says nothing.
    world.images.0.remove("app:1");
    assert_eq!(world.steps(), ["db no change", "web no change"]);
    assert_eq!(world.plan().projects[0].pulls, ["app:1"]);
}

#[test]
fn force_replaces_everything() {
    let world = World { force: true, ..World::applied(SHOP) };
    assert_eq!(world.steps(), ["db recreate in place forced", "web roll over forced"]);
}

#[test]
fn dead_containers_are_not_counted() {
    let mut world = World::applied(SHOP);
    for container in &mut world.containers {
        container.running = false;
    }
    assert_eq!(world.steps(), ["db start containers: 0 -> 1", "web start containers: 0 -> 2"]);
    assert!(world.plan().projects[0].services.iter().all(|service| !service.replaces));
    // One that Docker is about to start again is there.
    for container in &mut world.containers {
        container.restarting = true;
    }
    assert_eq!(world.steps(), ["db no change", "web no change"]);
    let dead = World::applied(SHOP).containers.into_iter().map(|c| Container { running: false, ..c }).collect();
    let world = World { containers: dead, ..World::applied(SHOP) }.then("app:1", "app:2");
    assert_eq!(world.steps()[1], "web start image: app:1 -> app:2; containers: 0 -> 2");
    assert!(world.plan().projects[0].services[1].replaces);
}

#[test]
fn what_runs_once_and_has_is_left_alone() {
    let once = SHOP.replace("image: pg:16", "image: pg:16, restart: 'no'");
    let ended = |code: i64| {
        let mut world = World::applied(&once);
        for container in world.containers.iter_mut().filter(|c| c.image == "pg:16") {
            container.running = false;
            container.exit_code = Some(code);
        }
        world
    };
    assert_eq!(ended(0).steps()[0], "db no change");
    assert_eq!(ended(1).steps()[0], "db start containers: 0 -> 1");
    assert_eq!(World { force: true, ..ended(0) }.steps()[0], "db start containers: 0 -> 1");
}

#[test]
fn containers_of_the_old_tool_are_adopted() {
    let mut world = World::applied(SHOP);
    for container in &mut world.containers {
        container.config_hash = None;
    }
    world.write("Shop", "services: {Shop-web: {image: app:1}}");
    assert_eq!(world.steps(), ["db no change", "web no change"]);
    // The file is taken over, and from then on it says what they were made from.
    assert!(world.plan().projects[0].writes);
    let adopted = stacks(&world.db, &world.artifacts, &world.pins)["Shop"].text();
    world.write("Shop", &adopted);
    assert!(!world.plan().has_changes());
    let changed = world.then("app:1,", "app:1, env: {A: b},");
    assert_eq!(changed.steps(), ["db no change", "web roll over env.A: added, b"]);
}

#[test]
fn another_image_of_the_old_tool_is_a_change() {
    let mut world = World::applied(SHOP);
    for container in &mut world.containers {
        container.config_hash = None;
    }
    world.write("Shop", "services: {Shop-web: {image: app:0}, Shop-db: {image: pg:16}}");
    world.containers.iter_mut().filter(|c| c.image == "app:1").for_each(|c| c.image = "app:0".into());
    let reasons = world.steps();
    assert_eq!(reasons[0], "db no change");
    assert!(reasons[1].starts_with("web roll over") && reasons[1].contains("image: app:0 -> app:1"), "{reasons:?}");
}

#[test]
fn a_change_that_the_files_do_not_tell_is_still_one() {
    let mut world = World::applied(SHOP);
    world.containers.iter_mut().for_each(|c| c.config_hash = Some("0123456789".into()));
    let hash = |service: &str| {
        stacks(&world.db, &world.artifacts, &world.pins)["Shop"].service(service).unwrap().config.clone()
    };
    let short = hash("web").as_str()[..8].to_owned();
    assert_eq!(world.steps()[1], format!("web roll over settings since it was started: 01234567 -> {short}"));
}

#[test]
fn what_db_yml_does_not_name_goes_only_when_asked() {
    let without_db = |world: World| world.then("depends_on: [db]}, {name: db, image: pg:16}]", "}]");
    let world = without_db(World::applied(SHOP));
    let plan = world.plan();
    assert_eq!(world.steps(), ["web no change", "Shop-db remove not in db.yml"]);
    let removed = |plan: &Plan| plan.projects[0].services[1].acts();
    assert!(!removed(&plan) && plan.projects[0].writes);
    assert!(removed(&World { prune: true, ..world }.plan()));
}

#[test]
fn a_project_out_of_service_is_taken_down() {
    let world = World::applied(SHOP).then("name: Shop,", "name: Shop, enabled: false,");
    assert_eq!(world.steps(), ["db remove enabled: false", "web remove enabled: false"]);
    let plan = world.plan();
    assert_eq!(plan.projects[0].change, Change::Remove);
    assert!(plan.has_changes() && !plan.projects[0].writes && plan.projects[0].before.is_empty());
    let down = World { containers: Vec::new(), ..world };
    assert!(!down.plan().has_changes() && down.plan().gone.is_empty());
}

#[test]
fn projects_that_are_gone_are_told_and_removed_with_prune() {
    let mut world = World::applied(SHOP);
    world.write("Old", "name: older");
    world.write("Left", "services: {}");
    world.artifacts.folders.insert("data-only".into(), Folder::default());
    world.containers.push(container("x", "older", "older-web"));
    let gone = |world: &World| -> Vec<(String, String, usize, bool)> {
        world.plan().gone.into_iter().map(|g| (g.folder, g.compose_name, g.containers, g.removed)).collect()
    };
    let left = ("Left".to_owned(), "left".to_owned(), 0, false);
    assert_eq!(gone(&world), [left, ("Old".into(), "older".into(), 1, false)]);
    assert!(!world.plan().has_changes());
    world.prune = true;
    assert!(world.plan().has_changes() && gone(&world).iter().all(|gone| gone.3));
    world.only = Some("Shop");
    assert!(world.plan().gone.is_empty());
}

#[test]
fn a_project_by_another_spelling_keeps_its_containers() {
    let mut world = World { prune: true, ..World::applied(SHOP) };
    world.write("SHOP", "name: shop");
    assert_eq!(world.plan().gone[0].containers, 0);
}

#[test]
fn a_pin_holds_until_its_part_of_db_yml_changes() {
    let before = stacks(&read(SHOP), &Artifacts::default(), &Pins::default())["Shop"].clone();
    let world = World::applied(SHOP).then("app:1", "app:2");
    let wanted =
        stacks(&world.db, &Artifacts::default(), &Pins::default())["Shop"].service("web").unwrap().wanted.clone();
    let document = before.service("web").unwrap().document.clone();
    let pins = Pins::from([(ServiceKey::new("Shop", "web"), Pin { wanted, document })]);
    let pinned = World { pins, ..world };
    let plan = pinned.plan();
    assert_eq!(pinned.steps(), ["db no change", "web no change"]);
    assert!(plan.projects[0].services[1].pinned && !plan.has_changes());
    let changed = pinned.then("app:1", "app:3");
    assert_eq!(changed.steps()[1], "web roll over image: app:1 -> app:3");
}

#[test]
fn hosts_are_compared_with_what_is_served() {
    let mut world = World::applied(SHOP);
    world.serving = Some(read(&SHOP.replace("domain: shop.test", "domain: old.test, aliases: ['*.a.test']")));
    let plan = world.plan();
    assert_eq!(
        (plan.hosts_added, plan.hosts_dropped),
        (vec!["shop.test".into()], vec!["*.a.test".into(), "old.test".into()])
    );
}

#[test]
fn the_network_is_made_for_who_needs_it() {
    let network = |text: &str| {
        let (db, artifacts) = (read(text), Artifacts::default());
        let stacks = stacks(&db, &artifacts, &Pins::default());
        let (observed, images) = (Observed::default(), Images::default());
        let inputs = Inputs {
            db: &db,
            stacks: &stacks,
            observed: &observed,
            images: &images,
            artifacts: &artifacts,
            network: false,
            serving: None,
            only: None,
            force: false,
            prune: false,
        };
        plan(&inputs).create_network
    };
    assert!(network(SHOP));
    assert!(!network("projects: [{name: nas, domain: nas.test, services: [{name: nas.lan}]}]"));
    assert!(!network(&SHOP.replace("name: Shop,", "name: Shop, enabled: false,")));
}

#[test]
fn the_impact_is_told_as_people_say_it() {
    let world = World::applied(SHOP).then("app:1", "app:2");
    let impact = |world: &World, service: &str, websockets: u32, restart: Option<u64>| {
        let mut plan = world.plan();
        let in_flight = InFlightReport { requests: 3, websockets, passthrough: websockets / 10, ..Default::default() };
        let restarts = restart.map(|seconds| (ServiceKey::new("Shop", service), Duration::from_secs(seconds)));
        let live = Live {
            in_flight: BTreeMap::from([("Shop/web".into(), in_flight)]),
            restarts: restarts.into_iter().collect(),
        };
        plan.judge(&world.db, &live);
        let service = plan.projects[0].services.iter().find(|one| one.service == service).unwrap();
        service.impact.as_ref().map(ToString::to_string)
    };
    assert_eq!(impact(&world, "web", 0, None).as_deref(), Some("none"));
    assert_eq!(impact(&world, "db", 0, None), None);
    let closed = "14 websockets and 1 passthrough connection will be closed after 5 min";
    assert_eq!(impact(&world, "web", 14, None).as_deref(), Some(closed));
    let recreated = World::applied(SHOP).then("app:1,", "app:2, rollout: {strategy: recreate},");
    assert_eq!(
        impact(&recreated, "web", 1, Some(8)).as_deref(),
        Some("requests held about 8 s; 1 websocket will be closed at once")
    );
    let db = World::applied(SHOP).then("pg:16", "pg:17");
    assert_eq!(impact(&db, "db", 0, None).as_deref(), Some("away while it restarts"));
}

#[test]
fn a_plan_is_the_same_on_both_ends_of_a_socket() {
    let plan = World::applied(SHOP).then("app:1", "app:2").plan();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
}

#[test]
fn one_off_containers_are_nobodys() {
    let mut world = World::applied(SHOP);
    world.containers.push(Container { oneoff: true, ..container("run", "shop", "Shop-other") });
    assert!(!world.plan().has_changes());
    assert_ne!(world.containers.last().unwrap().id, ContainerId::from(""));
}
