//! Stacks with a real engine: what is written, what is started, what is left alone, and what is said of it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::process::Command;
use std::time::Instant;

use harness::{Docker, Finished, Itsup, Root, docker, eventually, run, testd_image, try_docker};
use serde_json::Value;

/// A project of the test server: `web`, which traffic leads to, and `db`, which it depends on.
struct Shop {
    docker: Docker,
    root: Root,
    image: String,
}

impl Shop {
    fn new(name: &str) -> Shop {
        Shop { docker: Docker::new(name), root: Root::new(), image: testd_image() }
    }

    fn name(&self) -> &str {
        self.docker.project()
    }

    /// One project's part of db.yml.
    fn project(&self, name: &str, web: &str, more: &str) -> String {
        let image = &self.image;
        format!(
            "  - name: {name}\n    domain: {name}.test\n    tls: internal\n    entrypoint: web\n{more}    services:\n      \
             - {{ name: web, depends_on: [db], {web} }}\n      - {{ name: db, image: \"{image}\" }}\n"
        )
    }

    /// Writes a db.yml with this project alone; `web` has more keys of that service.
    fn write(&self, web: &str, more: &str) {
        let web = format!("image: \"{}\"{web}", self.image);
        self.root.write("db.yml", format!("projects:\n{}", self.project(self.name(), &web, more)));
    }

    fn cli(&self, arguments: &[&str]) -> Finished {
        let mut command = self.root.command();
        run(command.env("OURS", "secret").env("ITSUP_DOCKER", "on").args(arguments))
    }

    /// The containers of a service that run, with their starts.
    fn running(&self, service: &str) -> Vec<String> {
        running(self.name(), service)
    }

    fn environment(&self, service: &str) -> Vec<String> {
        let format = "{{range .Config.Env}}{{println .}}{{end}}";
        let ids = self.running(service);
        docker(&["inspect", "-f", format, id(&ids[0])]).lines().map(str::to_owned).collect()
    }

    /// What is in the project's folder.
    fn files(&self) -> Vec<String> {
        let folder = self.root.path(&format!("upstream/{}", self.name()));
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The running containers of a project's service: `ID START`.
fn running(project: &str, service: &str) -> Vec<String> {
    let labels = [
        format!("label=com.docker.compose.project={project}"),
        format!("label=com.docker.compose.service={project}-{service}"),
    ];
    let ids = docker(&["ps", "-q", "--no-trunc", "--filter", &labels[0], "--filter", &labels[1]]);
    let mut ids: Vec<&str> = ids.split_whitespace().collect();
    ids.sort_unstable();
    ids.iter().map(|id| docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", id])).collect()
}

fn id(running: &str) -> &str {
    running.split(' ').next().unwrap()
}

/// The step of each service of the first project in a plan.
fn steps(plan: &Value) -> Vec<(String, String)> {
    let services = plan["projects"][0]["services"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    services.iter().map(|service| (text(&service["service"]), text(&service["step"]))).collect()
}

fn step(service: &str, step: &str) -> (String, String) {
    (service.into(), step.into())
}

#[test]
fn docker_apply_makes_a_stack_and_then_touches_only_what_changes() {
    let shop = Shop::new("apply");
    let env = r#", volumes: [/data], env: {A: yes, B: 0777, C: "a: \"b\" # $$x", D: "${FILLED}", E: "[${OURS}${HOME_OF_NOBODY}]"}"#;
    shop.write(env, "");
    shop.root.write(&format!("upstream/{}/.env", shop.name()), "FILLED=from the file\n");

    let plan = shop.cli(&["plan", "--json", "--exit-code"]);
    assert_eq!((plan.code, steps(&plan.json())), (Some(3), vec![step("db", "start"), step("web", "start")]));
    assert!(
        !shop.root.path(&format!("upstream/{}/docker-compose.yml", shop.name())).exists(),
        "a plan changes nothing"
    );
    assert_eq!(shop.cli(&["apply", "--dry-run", "--json"]).ok().json()["projects"], plan.json()["projects"]);

    let applied = shop.cli(&["apply"]).ok();
    assert!(applied.stdout.contains("1 changed"), "{}", applied.stdout);
    assert!(applied.stderr.contains(&format!("{}/db: starting", shop.name())), "{}", applied.stderr);
    assert_eq!(shop.files(), [".env", "data", "docker-compose.yml"]);
    let environment = shop.environment("web");
    for wanted in ["A=yes", "B=0777", "C=a: \"b\" # $x", "D=from the file", "E=[]"] {
        assert!(environment.iter().any(|line| line == wanted), "{wanted} in {environment:?}");
    }

    let (web, db) = (shop.running("web"), shop.running("db"));
    assert_eq!((web.len(), db.len()), (1, 1));
    let began = Instant::now();
    let again = shop.cli(&["apply"]).ok();
    eprintln!("the second apply took {:?}", began.elapsed());
    assert!(again.stdout.contains("1 unchanged"), "{}", again.stdout);
    assert_eq!((shop.running("web"), shop.running("db")), (web.clone(), db.clone()));
    let plan = shop.cli(&["plan", "--exit-code"]).ok();
    assert_eq!(plan.stdout, "nothing to do\n");

    // One key of one service: the other one is not even restarted.
    shop.write(&env.replace("A: yes", "A: no"), "");
    let plan = shop.cli(&["plan", "--exit-code"]);
    assert_eq!(plan.code, Some(3));
    assert!(plan.stdout.contains("roll over") && plan.stdout.contains("env.A: yes -> no"), "{}", plan.stdout);
    shop.cli(&["apply", shop.name()]).ok();
    assert_ne!(shop.running("web"), web);
    assert_eq!(shop.running("db"), db);
    assert!(shop.environment("web").contains(&"A=no".to_owned()));

    // And what is filled in from the file is a change as well.
    shop.root.write(&format!("upstream/{}/.env", shop.name()), "FILLED=anew\n");
    assert_eq!(steps(&shop.cli(&["plan", "--json"]).ok().json()), [step("db", "no_change"), step("web", "roll_over")]);
    shop.cli(&["apply"]).ok();
    assert!(shop.environment("web").contains(&"D=anew".to_owned()));
    assert_eq!(shop.running("db"), db);
}

#[test]
fn docker_a_moved_image_is_seen_and_the_previous_one_is_kept() {
    let shop = Shop::new("moved");
    // Compose's own name of the service, as a repository.
    let kept = format!("itsup-rollback/{}-web", shop.name());
    let image = format!("127.0.0.1:1/{}:latest", shop.name());
    let build = |version: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Dockerfile"), format!("FROM {}\nLABEL v={version}\n", shop.image)).unwrap();
        docker(&["build", "-q", "-t", &image, &folder.path().display().to_string()])
    };
    let images = || -> Vec<String> {
        let ids = docker(&["images", "-q", "--no-trunc", &kept]);
        ids.split_whitespace().map(str::to_owned).collect()
    };
    let first = build("1");
    let db = format!("projects:\n{}", shop.project(shop.name(), &format!("image: \"{image}\""), ""));
    shop.root.write("db.yml", db);
    shop.cli(&["apply"]).ok();
    let before = shop.running("web");
    // Its registry is nobody: what is here is used, and that is said.
    let same = shop.cli(&["apply"]).ok();
    assert!(same.stdout.contains("the pull failed"), "{}", same.stdout);
    assert_eq!(shop.running("web"), before);

    let second = build("2");
    let plan = shop.cli(&["plan"]).ok();
    assert!(plan.stdout.contains("image id:"), "{}", plan.stdout);
    shop.cli(&["apply"]).ok();
    let image_of = || docker(&["inspect", "-f", "{{.Image}}", id(&shop.running("web")[0])]);
    assert_eq!(image_of(), second);
    assert_eq!(images(), [first.as_str()], "the previous one is kept by a name");

    let third = build("3");
    shop.cli(&["apply"]).ok();
    assert_eq!(image_of(), third);
    assert_eq!(images(), [second.as_str()], "and no other");
    assert!(!try_docker(&["image", "inspect", &first]).status.success(), "the one before it is removed");
}

#[test]
fn docker_what_the_old_tool_has_made_is_adopted() {
    let shop = Shop::new("adopt");
    let (name, image) = (shop.name(), &shop.image);
    let service = |service: &str| {
        format!(
            "  {name}-{service}:\n    image: \"{image}\"\n    restart: unless-stopped\n    networks: [default, proxynet]\n"
        )
    };
    let file = format!("services:\n{}{}networks:\n  proxynet: {{ external: true }}\n", service("web"), service("db"));
    shop.root.write(&format!("upstream/{name}/docker-compose.yml"), file);
    let folder = shop.root.path(&format!("upstream/{name}"));
    run(Command::new("docker").current_dir(&folder).args(["compose", "-p", name, "up", "-d"])).ok();
    let (web, db) = (shop.running("web"), shop.running("db"));
    assert_eq!((web.len(), db.len()), (1, 1));

    shop.write("", "");
    let plan = shop.cli(&["plan"]).ok();
    assert!(plan.stdout.contains("no container is touched"), "{}", plan.stdout);
    shop.cli(&["apply"]).ok();
    assert_eq!((shop.running("web"), shop.running("db")), (web.clone(), db.clone()));
    assert!(shop.root.read(&format!("upstream/{name}/docker-compose.yml")).contains("itsup.config"));
    assert_eq!(shop.cli(&["plan", "--exit-code"]).ok().stdout, "nothing to do\n");

    shop.write(", env: {A: b}", "");
    shop.cli(&["apply"]).ok();
    assert_ne!(shop.running("web"), web);
    assert_eq!(shop.running("db"), db);
}

#[test]
fn docker_one_failing_project_stops_no_other_and_leaves_nothing_to_act_on() {
    let shop = Shop::new("fail");
    let image = format!("image: \"{}\"", shop.image);
    let names = ["missing", "invalid", "crash", "good"].map(|kind| format!("{}-{kind}", shop.name()));
    let [missing, invalid, crash, good] = &names;
    let crashing = format!("{image}, env: {{TESTD_CRASH_AFTER: 100ms}}, restart: always");
    let projects = [
        shop.project(missing, "image: \"127.0.0.1:1/nowhere:1\"", ""),
        shop.project(invalid, &format!("{image}, compose: {{bogus: 1}}"), ""),
        shop.project(crash, &crashing, ""),
        shop.project(good, &image, ""),
    ];
    shop.root.write("db.yml", format!("projects:\n{}", projects.concat()));
    let applied = shop.cli(&["apply"]);
    assert_eq!(applied.code, Some(1));
    for (name, told) in [
        (missing, "the image 127.0.0.1:1/nowhere:1 is not here and cannot be pulled"),
        (invalid, "bogus"),
        (crash, "web: its container"),
    ] {
        let line = applied.stdout.lines().find(|line| line.starts_with(&format!("{name} failed:")));
        assert!(line.is_some_and(|line| line.contains(told)), "{name}: {}", applied.stdout);
        let folder = shop.root.path(&format!("upstream/{name}"));
        assert!(!folder.join("docker-compose.yml").exists() && !folder.join("docker-compose.next.yml").exists());
        assert_eq!(running(name, "web"), Vec::<String>::new());
    }
    assert!(applied.stdout.contains("1 changed, 3 failed"), "{}", applied.stdout);
    assert_eq!((running(good, "web").len(), running(good, "db").len()), (1, 1));
    // Nothing was begun where that could be known.
    assert!(running(missing, "db").is_empty() && running(invalid, "db").is_empty());
}

#[test]
fn docker_commands_before_a_change_run_once_and_stop_it_when_they_fail() {
    let shop = Shop::new("before");
    shop.write("", "    before: [--version]\n");
    let applied = shop.cli(&["apply"]).ok();
    assert!(applied.stderr.contains("web: first, --version"), "{}", applied.stderr);
    let web = shop.running("web");
    let again = shop.cli(&["apply"]).ok();
    assert!(!again.stderr.contains("first,"), "{}", again.stderr);

    shop.write(", env: {A: b}", "    before: [--version, --no-such-flag, --help]\n");
    let failed = shop.cli(&["apply"]);
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.stdout.contains("before: `--no-such-flag` failed, so nothing was changed over"),
        "{}",
        failed.stdout
    );
    assert!(failed.stdout.contains("unexpected argument"), "what it said is shown: {}", failed.stdout);
    assert!(!failed.stderr.contains("first, --help"), "{}", failed.stderr);
    assert_eq!(shop.running("web"), web);
    assert_eq!(shop.files(), ["docker-compose.yml"]);
    assert!(!shop.root.read(&format!("upstream/{}/docker-compose.yml", shop.name())).contains("A: \"b\""));
}

#[test]
fn docker_what_db_yml_no_longer_names_goes_with_prune_alone() {
    let shop = Shop::new("prune");
    let name = shop.name();
    shop.write(", volumes: [/data]", "");
    shop.cli(&["apply"]).ok();
    shop.root.write(&format!("upstream/{name}/data/kept"), "");

    // A service.
    let image = &shop.image;
    let alone = format!(
        "projects:\n  - {{ name: {name}, domain: {name}.test, entrypoint: web, services: [{{ name: web, image: \"{image}\", volumes: [/data] }}] }}\n"
    );
    shop.root.write("db.yml", &alone);
    let told = shop.cli(&["plan"]).ok().stdout;
    assert!(told.contains("only with --prune"), "{told}");
    shop.cli(&["apply"]).ok();
    assert_eq!((shop.running("web").len(), shop.running("db").len()), (1, 1));
    shop.cli(&["apply", "--prune"]).ok();
    assert_eq!((shop.running("web").len(), shop.running("db").len()), (1, 0));

    // Out of service: that is said in so many words, so it is done.
    shop.root.write("db.yml", alone.replace("domain:", "enabled: false, domain:"));
    shop.cli(&["apply"]).ok();
    assert_eq!(shop.running("web").len(), 0);
    shop.root.write("db.yml", &alone);
    shop.cli(&["apply"]).ok();
    assert_eq!(shop.running("web").len(), 1);

    // The project.
    shop.root.write("db.yml", "projects: []\n");
    let told = shop.cli(&["plan", "--exit-code"]).ok().stdout;
    assert!(told.contains("is no longer in db.yml and has 1 containers"), "{told}");
    shop.cli(&["apply"]).ok();
    assert_eq!(shop.running("web").len(), 1);
    shop.cli(&["apply", "--prune"]).ok();
    assert_eq!(shop.running("web").len(), 0);
    assert_eq!(shop.files(), ["data"]);
    assert!(shop.root.path(&format!("upstream/{name}/data/kept")).exists(), "volumes are kept");
    assert_eq!(shop.cli(&["plan", "--exit-code", "--json"]).ok().json()["gone"], serde_json::json!([]));
}

#[test]
fn docker_a_running_itsup_applies_and_routes_what_has_come_up() {
    let shop = Shop::new("running");
    shop.root.write("db.yml", "projects: []\n");
    let itsup = Itsup::on(&shop.root).docker().start();
    shop.write("", "");
    let applied = shop.cli(&["apply"]).ok();
    assert!(applied.stdout.contains("1 changed"), "{}", applied.stdout);
    let url = format!("https://{}.test/", shop.name());
    let answer = eventually("the new project answers", || {
        let answer = itsup.get(&url);
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.json()["name"], "testd");
    let plan = shop.cli(&["plan", "--json", "--exit-code"]).ok().json();
    assert_eq!(plan["changes"], false);

    // A faulty db.yml changes nothing, and is told with its place.
    shop.write(", prot: 80", "");
    let refused = shop.cli(&["apply"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("unknown key `prot`"), "{}", refused.stderr);
    assert_eq!(itsup.get(&url).status, 200);

    // A project that fails keeps the routes that it had.
    shop.root.write(
        "db.yml",
        shop.root.read("db.yml").replace(", prot: 80", "").replace("entrypoint: web", "entrypoint: db"),
    );
    let broken = shop
        .root
        .read("db.yml")
        .replace(&format!("db, image: \"{}\"", shop.image), "db, image: \"127.0.0.1:1/nowhere:1\"");
    shop.root.write("db.yml", broken);
    let failed = shop.cli(&["apply"]);
    assert_eq!(failed.code, Some(1), "{}", failed.stdout);
    assert_eq!(itsup.get(&url).status, 200);
}

#[test]
fn docker_write_makes_files_and_stack_runs_compose_on_them() {
    let shop = Shop::new("stack");
    let name = shop.name();
    shop.write(", volumes: [/data]", "");
    let without = shop.cli(&["stack", name, "ps"]);
    assert_eq!(without.code, Some(1));
    assert!(without.stderr.contains("itsup write"), "{}", without.stderr);

    let written = shop.cli(&["write", name]).ok();
    assert_eq!(written.stdout, format!("upstream/{name}/docker-compose.yml written\n"));
    assert_eq!(shop.files(), ["data", "docker-compose.yml"]);
    let text = shop.root.read(&format!("upstream/{name}/docker-compose.yml"));
    assert!(shop.cli(&["write"]).ok().stdout.contains("unchanged"));
    assert_eq!(shop.root.read(&format!("upstream/{name}/docker-compose.yml")), text);

    shop.cli(&["stack", name, "up", &format!("{name}-db")]).ok();
    assert_eq!((shop.running("db").len(), shop.running("web").len()), (1, 0));
    let listed = shop.cli(&["all", "ps", "--services"]).ok();
    assert_eq!(listed.stdout.trim(), format!("{name}-db"));
    // Compose's own flags are compose's, and so is its exit code.
    let output = shop.cli(&["stack", name, "logs", "--no-such-flag"]);
    assert!(output.code != Some(0) && output.stderr.contains("no-such-flag"), "{}", output.stderr);

    // A file that compose refuses never takes the place of a good one.
    shop.write(", compose: {bogus: 1}", "");
    let refused = shop.cli(&["write"]);
    assert_eq!(refused.code, Some(1));
    assert_eq!(shop.root.read(&format!("upstream/{name}/docker-compose.yml")), text);
    assert_eq!(shop.files(), ["data", "docker-compose.yml"]);
}

#[test]
fn docker_the_shells_functions_are_short_for_the_commands() {
    let shop = Shop::new("shell");
    shop.write("", "");
    let name = shop.name();
    let itsup = Itsup::on(&shop.root).docker().start();
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_itsup")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let shell = |words: &str| {
        let script = format!(". lib/functions.sh && {words}");
        let mut command = Command::new("bash");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", &script]).env("PATH", &path);
        run(command.env("ITSUP_ROOT", shop.root.path("")).env("ITSUP_DOCKER", "on").env("NO_COLOR", "1"))
    };
    shop.cli(&["write"]).ok();
    shell(&format!("dcu {name} up {name}-db")).ok();
    assert_eq!((shop.running("db").len(), shop.running("web").len()), (1, 0));
    assert_eq!(shell("dca ps --services").ok().stdout.trim(), format!("{name}-db"));
    let status = shell("dcp").ok().stdout;
    assert!(status.starts_with("itsup ") && status.contains(&format!("pid {}", itsup.pid())), "{status}");
    assert!(shell("dcp reload").ok().stdout.contains("nothing changed"));
    itsup.get(&format!("https://{name}.test/once"));
    itsup.logged(|line| line["path"] == "/once");
    assert!(shell("dcp logs").ok().stdout.contains("/once"));
    // Containers' logs and the proxy's, as one.
    let both = shell(&format!("itsup logs {name}")).ok().stdout;
    assert!(both.contains(&format!("{name}-{name}-db-1")) && both.contains("/once"), "{both}");
}

#[test]
fn completions_know_projects_verbs_and_services() {
    let root = Root::new();
    root.write(
        "db.yml",
        "projects:\n  - { name: shop, services: [{ name: web, image: i }, { name: nas.lan }] }\n  - { name: site, services: [] }\n",
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(root.cli(&["completions", shell]).ok().stdout.contains("COMPLETE"), "{shell}");
    }
    let complete = |words: &[&str]| -> Vec<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_itsup"));
        command.env("COMPLETE", "fish").env("ITSUP_ROOT", root.path("")).args(["--", "itsup"]).args(words);
        let lines = run(&mut command).ok().stdout;
        lines.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(complete(&["stack", "s"]), ["shop", "site"]);
    assert_eq!(complete(&["plan", "sh"]), ["shop"]);
    assert_eq!(complete(&["stack", "shop", "re"]), ["restart"]);
    assert_eq!(complete(&["stack", "shop", "restart", "sh"]), ["shop-web"]);
    assert_eq!(complete(&["all", "p"]), ["pause", "port", "ps", "pull", "push"]);
    assert!(complete(&["comp"]).contains(&"completions".to_owned()));
}

#[test]
fn without_compose_or_an_engine_it_says_what_to_do() {
    let root = Root::new();
    root.write("db.yml", "projects:\n  - { name: shop, services: [{ name: web, image: i }] }\n");
    let mut command = root.command();
    let host = format!("unix://{}", root.path("no.sock").display());
    let finished = run(command.env("ITSUP_DOCKER", "on").env("DOCKER_HOST", host).arg("plan"));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot be reached") && finished.stderr.contains("hint:"), "{}", finished.stderr);

    let mut command = root.command();
    let finished = run(command.env("PATH", root.path("")).env("ITSUP_DOCKER", "on").arg("write"));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("docker compose is not installed"), "{}", finished.stderr);

    let unknown = root.cli(&["plan", "shp"]);
    assert!(unknown.stderr.contains("db.yml has no project `shp`"), "{}", unknown.stderr);
}
