use std::time::Duration;

use itsup_proxy::{HeaderEdits, Host, ProxyVersion};

use super::*;
use crate::active::step;
use crate::db::{HealthCheck, PathRoute, Timeouts};
use crate::testing::{container, db, image, observed, project, service};

fn host(name: &str) -> Host {
    Host::parse(name).unwrap()
}

fn route(path: &str, service: &str) -> PathRoute {
    PathRoute { path: PathPrefix::parse(path).unwrap(), service: service.into(), strip: false }
}

/// What the tests vary, with all running containers active.
struct World {
    db: Db,
    observed: Observed,
    resolved: Resolved,
    own: OwnAddresses,
    api: Option<(u16, PathBuf)>,
    ca_files: BTreeMap<PathBuf, Arc<str>>,
}

impl World {
    fn new(projects: impl IntoIterator<Item = Project>) -> Self {
        Self {
            db: db(projects),
            observed: observed([]),
            resolved: Resolved::default(),
            own: ["127.0.0.1".parse().unwrap(), "172.17.0.1".parse().unwrap()].into_iter().collect(),
            api: Some((8888, "/srv/data/api.sock".into())),
            ca_files: BTreeMap::new(),
        }
    }

    fn with(mut self, containers: impl IntoIterator<Item = Container>) -> Self {
        self.observed = observed(containers);
        self
    }

    fn table(&self) -> RouteTable {
        self.table_of(&step(&ActiveSets::default(), &self.db, &self.observed, &BTreeSet::new(), &BTreeSet::new()))
    }

    fn table_of(&self, active: &ActiveSets) -> RouteTable {
        route_table(&RouteInputs {
            db: &self.db,
            observed: &self.observed,
            active,
            resolved: &self.resolved,
            own_addresses: &self.own,
            api: self.api.clone(),
            edge: Edge::default(),
            ca_files: &self.ca_files,
        })
    }
}

/// Spells a table as lines: hosts with what they do, upstreams with their endpoints.
fn spelled(table: &RouteTable) -> Vec<String> {
    let hosts = table.hosts.iter().map(|(host, action)| {
        let does = match action {
            Action::Pass(pass) => format!("passes to {}, challenges to {:?}", pass.upstream, pass.challenge),
            Action::Redirect(to) => format!("redirects to {to}"),
            Action::Terminate(site) => {
                let routes = site.routes.iter().map(|route| match &route.target {
                    Target::Upstream(name) => format!("{} to {name}", route.path.as_str()),
                    Target::Welcome => format!("{} to the welcome page", route.path.as_str()),
                });
                routes.collect::<Vec<_>>().join(", ")
            }
        };
        format!("{host}: {does}")
    });
    let upstreams = table.upstreams.iter().map(|(name, upstream)| {
        let endpoints = upstream.endpoints.iter().map(|endpoint| {
            let address = match &endpoint.address {
                Address::Tcp(address) => address.to_string(),
                Address::Unix(path) => path.display().to_string(),
            };
            format!("{address}{}", if endpoint.unhealthy { " (last choice)" } else { "" })
        });
        format!("{name} = {}", endpoints.collect::<Vec<_>>().join(", "))
    });
    hosts.chain(upstreams).collect()
}

fn check(world: &World, wanted: &[&str]) {
    assert_eq!(spelled(&world.table()), wanted);
}

fn with_domain(mut project: Project, domain: &str) -> Project {
    project.domain = Some(host(domain));
    project
}

fn old_samples() -> World {
    let mut home = service("192.168.1.111");
    (home.passthrough, home.port) = (true, 443);
    let mut api = service("172.17.0.1");
    api.port = 8888;
    let mut test = with_domain(project("test", vec![image("master"), image("informant")]), "hello.example.com");
    test.entrypoint = Some("master".into());
    World::new([
        with_domain(project("home-assistant", vec![home]), "home.example.com"),
        with_domain(project("itsUP", vec![api]), "itsup.example.com"),
        test,
    ])
    .with([container("a1", "test", "test-master"), container("b1", "test", "test-informant")])
}

#[test]
fn the_old_samples_are_routed() {
    insta::assert_debug_snapshot!(old_samples().table());
}

#[test]
fn everything_that_can_be_set_arrives() {
    let mut nas = service("nas.lan");
    nas.port = 5001;
    nas.http = Http::Https(VerifySetting::Ca("certs/nas.pem".into()));
    nas.proxy_protocol = Some(ProxyVersion::V2);
    nas.max_body = Some(1 << 20);
    let seconds = |s| Some(Duration::from_secs(s));
    nas.timeouts = Timeouts { connect: seconds(1), response: seconds(2), idle: seconds(3) };
    nas.health =
        Some(HealthCheck { path: "/up".into(), interval: Duration::from_secs(4), timeout: Duration::from_secs(5) });
    let mut shop = with_domain(project("shop", vec![nas]), "shop.example.com");
    shop.aliases = vec![HostPattern::parse("*.shop.example.com").unwrap()];
    shop.redirect_from = vec![host("www.example.com")];
    shop.allow = vec!["10.0.0.0/8".parse().unwrap()];
    shop.headers = HeaderEdits {
        remove: vec!["server".parse().unwrap()],
        set: vec![("x-frame-options".parse().unwrap(), "DENY".parse().unwrap())],
    };
    shop.hsts = Some("max-age=1".into());
    shop.compress = true;
    let mut world = World::new([shop]);
    world.resolved.set("nas.lan".into(), ["192.168.1.5".parse().unwrap()]);
    world.ca_files.insert("certs/nas.pem".into(), "-----BEGIN CERTIFICATE-----".into());
    assert_eq!(ca_files(&world.db, &world.observed), BTreeSet::from([PathBuf::from("certs/nas.pem")]));
    insta::assert_debug_snapshot!(world.table());
}

#[test]
fn static_services_without_an_entrypoint_are_one_upstream() {
    let world = World::new([with_domain(project("web", vec![service("10.0.0.1"), service("10.0.0.2")]), "web.lan")]);
    check(&world, &["web.lan: / to web", "web = 10.0.0.1:8080, 10.0.0.2:8080"]);
}

#[test]
fn a_static_entrypoint_leads_to_itself_alone() {
    let mut web = with_domain(project("web", vec![service("10.0.0.1"), service("10.0.0.2")]), "web.lan");
    web.entrypoint = Some("10.0.0.2".into());
    check(&World::new([web]), &["web.lan: / to web/10.0.0.2", "web/10.0.0.2 = 10.0.0.2:8080"]);
}

#[test]
fn one_host_cannot_both_pass_and_end_tls() {
    let mut first = service("10.0.0.1");
    (first.passthrough, first.challenge_port) = (true, 81);
    let services = vec![first, service("10.0.0.2")];
    let world = World::new([with_domain(project("web", services.clone()), "web.lan")]);
    check(
        &world,
        &[
            "web.lan: passes to web, challenges to Some(\"web#challenge\")",
            "web = 10.0.0.1:8080",
            "web#challenge = 10.0.0.1:81",
        ],
    );
    let mut with_header = service("10.0.0.1");
    (with_header.passthrough, with_header.proxy_protocol) = (true, Some(ProxyVersion::V2));
    let table = World::new([with_domain(project("web", vec![with_header]), "web.lan")]).table();
    let header = |name: &str| table.upstreams[name].policy.proxy_protocol;
    assert_eq!((header("web"), header("web#challenge")), (Some(ProxyVersion::V2), None));
    let mut routed = with_domain(project("web", services), "web.lan");
    routed.routes = vec![route("/a", "10.0.0.3")];
    check(&World::new([routed]), &["web.lan: /a to web/10.0.0.3, / to web", "web = 10.0.0.2:8080"]);
}

#[test]
fn the_longest_path_comes_first_and_the_entrypoint_is_the_rest() {
    let mut shop = with_domain(project("shop", vec![image("web"), image("api"), service("10.0.0.9")]), "shop.lan");
    shop.entrypoint = Some("web".into());
    shop.routes = vec![route("/api", "api"), route("/api/v2", "10.0.0.9"), route("/api", "web")];
    let world = World::new([shop.clone()]).with([container("a", "shop", "shop-api")]);
    check(
        &world,
        &[
            "shop.lan: /api/v2 to shop/10.0.0.9, /api to shop/api, / to shop/web",
            "shop/10.0.0.9 = 10.0.0.9:8080",
            "shop/api = 172.18.0.2:8080",
            "shop/web = ",
        ],
    );
    shop.routes.push(route("/", "api"));
    let table = World::new([shop]).table();
    assert!(spelled(&table)[0].ends_with("/ to shop/api"), "a route for / wins: {:?}", spelled(&table));
}

#[test]
fn without_an_entrypoint_the_rest_is_what_no_route_names() {
    let mut shop = with_domain(project("shop", vec![image("api"), service("10.0.0.9")]), "shop.lan");
    shop.routes = vec![route("/api", "api")];
    check(
        &World::new([shop.clone()]),
        &["shop.lan: /api to shop/api, / to shop", "shop = 10.0.0.9:8080", "shop/api = "],
    );
    shop.services.pop();
    check(&World::new([shop]), &["shop.lan: /api to shop/api", "shop/api = "]);
}

#[test]
fn a_service_with_a_domain_is_routed_there() {
    let mut api = image("api");
    api.domain = Some(host("api.lan"));
    let mut vault = service("10.0.0.2");
    (vault.domain, vault.passthrough) = (Some(host("vault.lan")), true);
    let shop = with_domain(project("shop", vec![service("10.0.0.1"), api, vault]), "shop.lan");
    check(
        &World::new([shop]).with([container("a", "shop", "shop-api")]),
        &[
            "api.lan: / to shop/api",
            "shop.lan: / to shop",
            "vault.lan: passes to shop/10.0.0.2, challenges to Some(\"shop/10.0.0.2#challenge\")",
            "shop = 10.0.0.1:8080",
            "shop/10.0.0.2 = 10.0.0.2:8080",
            "shop/10.0.0.2#challenge = 10.0.0.2:80",
            "shop/api = 172.18.0.2:8080",
        ],
    );
}

#[test]
fn a_service_that_names_the_projects_own_domain_is_no_other_host() {
    let mut web = service("10.0.0.1");
    web.domain = Some(host("web.lan"));
    let world = World::new([with_domain(project("web", vec![web]), "web.lan")]);
    assert_eq!(spelled(&world.table())[0], "web.lan: / to web");
}

#[test]
fn a_project_without_services_welcomes_and_one_without_hosts_is_not_routed() {
    check(
        &World::new([with_domain(project("hello", vec![]), "hello.localhost"), project("jobs", vec![image("job")])]),
        &["hello.localhost: / to the welcome page"],
    );
}

#[test]
fn disabled_projects_are_left_out() {
    let mut web = with_domain(project("web", vec![service("10.0.0.1")]), "web.lan");
    web.enabled = false;
    assert_eq!(World::new([web]).table(), RouteTable::default());
}

#[test]
fn the_first_claim_on_a_host_counts() {
    let world = World::new([
        with_domain(project("a", vec![service("10.0.0.1")]), "web.lan"),
        with_domain(project("b", vec![service("10.0.0.2")]), "web.lan"),
    ]);
    assert_eq!(spelled(&world.table())[0], "web.lan: / to a");
}

fn one_image() -> Project {
    let mut shop = with_domain(project("Shop", vec![image("web")]), "shop.lan");
    shop.entrypoint = Some("web".into());
    shop
}

#[test]
fn what_a_container_says_of_itself_wins() {
    let mut labelled = container("a", "shop", "Shop-web");
    (labelled.port, labelled.http) = (Some(3000), Some(Http::H2c));
    let mut plain = container("b", "shop", "Shop-web");
    plain.address = Some([172, 18, 0, 3].into());
    let table = World::new([one_image()]).with([labelled, plain]).table();
    let endpoints = &table.upstreams["Shop/web"].endpoints;
    let told: Vec<_> = endpoints.iter().map(|e| (e.id.as_ref(), e.address.clone(), e.protocol.clone())).collect();
    let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
    assert_eq!(
        told,
        [
            ("a@2026-11-22T21:00:01Z", tcp("172.18.0.2:3000"), Protocol::H2c),
            ("b@2026-11-22T21:00:01Z", tcp("172.18.0.3:8080"), Protocol::H1),
        ]
    );
}

#[test]
fn health_weighs_and_never_empties() {
    use crate::observed::Health;
    for (health, paused, last) in [
        (Health::None, false, false),
        (Health::Healthy, false, false),
        (Health::Starting, false, true),
        (Health::Unhealthy, false, true),
        (Health::Healthy, true, true),
    ] {
        let mut one = container("a", "shop", "Shop-web");
        (one.health, one.paused) = (health, paused);
        let table = World::new([one_image()]).with([one]).table();
        let unhealthy: Vec<bool> = table.upstreams["Shop/web"].endpoints.iter().map(|e| e.unhealthy).collect();
        assert_eq!(unhealthy, [last], "{health:?}, paused: {paused}");
    }
}

#[test]
fn only_the_active_that_can_be_reached_are_routed() {
    let (mut nowhere, mut stopped) = (container("b", "shop", "Shop-web"), container("c", "shop", "Shop-web"));
    nowhere.address = None;
    (stopped.running, stopped.address) = (false, Some([172, 18, 0, 4].into()));
    let mut waiting = container("d", "shop", "Shop-web");
    waiting.address = Some([172, 18, 0, 5].into());
    let mut alien = container("e", "shop", "Shop-db");
    alien.address = Some([172, 18, 0, 6].into());
    let active = container("a", "shop", "Shop-web");
    let world = World::new([one_image()]).with([active, nowhere, stopped, waiting, alien]);
    let mut sets = ActiveSets::default();
    let ids = ["a", "b", "c", "e", "vanished"].map(ContainerId::from);
    sets.set(ServiceKey::new("Shop", "web"), ids.into_iter().collect());
    assert_eq!(spelled(&world.table_of(&sets)), ["shop.lan: / to Shop/web", "Shop/web = 172.18.0.2:8080"]);
}

#[test]
fn an_address_that_two_containers_claim_is_the_later_ones() {
    let old = container("a", "shop", "Shop-web");
    let mut new = container("b", "other", "other-db");
    new.started_at = "2026-11-22T21:00:01.5Z".into();
    let world = World::new([one_image()]).with([old.clone(), new]);
    check(&world, &["shop.lan: / to Shop/web", "Shop/web = "]);
    let mut before = container("b", "other", "other-db");
    before.started_at = "2026-11-22T20:59:59Z".into();
    check(&World::new([one_image()]).with([old, before]), &["shop.lan: / to Shop/web", "Shop/web = 172.18.0.2:8080"]);
}

#[test]
fn this_host_on_the_apis_port_is_served_in_process() {
    for (name, port, wanted) in [
        ("172.17.0.1", 8888, "web = /srv/data/api.sock"),
        ("localhost", 8888, "web = /srv/data/api.sock"),
        ("127.0.0.1", 8888, "web = /srv/data/api.sock"),
        ("172.17.0.1", 8889, "web = 172.17.0.1:8889"),
        ("172.17.0.9", 8888, "web = 172.17.0.9:8888"),
    ] {
        let mut api = service(name);
        api.port = port;
        let mut world = World::new([with_domain(project("web", vec![api]), "web.lan")]);
        world.resolved.set("localhost".into(), ["::1".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        assert_eq!(spelled(&world.table())[1], wanted);
        world.api = None;
        assert!(!spelled(&world.table())[1].contains("sock"));
    }
    let mut passed = service("172.17.0.1");
    (passed.port, passed.passthrough) = (8888, true);
    let table = World::new([with_domain(project("web", vec![passed]), "web.lan")]).table();
    assert_eq!(spelled(&table)[1], "web = 172.17.0.1:8888", "TLS that goes through is none of the API's");
}

#[test]
fn a_name_is_all_its_addresses_less_ipv6_where_there_is_none() {
    let mut world = World::new([with_domain(project("web", vec![service("nas.lan")]), "web.lan")]);
    check(&world, &["web.lan: / to web", "web = "]);
    world.resolved.set("nas.lan".into(), ["10.0.0.2", "10.0.0.1", "2001:db8::1"].map(|a| a.parse().unwrap()));
    check(&world, &["web.lan: / to web", "web = 10.0.0.1:8080, 10.0.0.2:8080"]);
    world.own = ["2001:db8::9".parse().unwrap()].into_iter().collect();
    check(&world, &["web.lan: / to web", "web = 10.0.0.1:8080, 10.0.0.2:8080, [2001:db8::1]:8080"]);
    world.own = OwnAddresses::default();
    world.resolved.set("nas.lan".into(), ["2001:db8::1".parse().unwrap()]);
    check(&world, &["web.lan: / to web", "web = [2001:db8::1]:8080"]);
}

#[test]
fn a_ca_file_that_is_not_there_trusts_nobody() {
    let mut nas = service("nas.lan");
    nas.http = Http::Https(VerifySetting::Ca("gone.pem".into()));
    let mut world = World::new([with_domain(project("web", vec![nas]), "web.lan")]);
    world.resolved.set("nas.lan".into(), ["10.0.0.1".parse().unwrap()]);
    let wanted = Protocol::Https(Verify { name: "nas.lan".into(), against: VerifyAgainst::Ca("".into()) });
    assert_eq!(world.table().upstreams["web"].endpoints[0].protocol, wanted);
}
