//! Values with defaults for unit tests: what db.yml and Docker would have said.

use crate::db::{Db, Http, Project, Service, Timeouts, Tls};
use crate::observed::{Container, ContainerId, Engine, Health, Observed};

pub(crate) fn project(name: &str, services: Vec<Service>) -> Project {
    Project {
        name: name.into(),
        compose_name: name.to_lowercase().into(),
        description: None,
        enabled: true,
        domain: None,
        aliases: Vec::new(),
        redirect_from: Vec::new(),
        entrypoint: None,
        routes: Vec::new(),
        tls: Tls::Auto,
        allow: Vec::new(),
        basic: Vec::new(),
        headers: Default::default(),
        hsts: None,
        compress: false,
        services,
        before: Vec::new(),
        webhook: None,
        line: 1,
    }
}

/// A static host.
pub(crate) fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        image: None,
        port: 8080,
        passthrough: false,
        domain: None,
        env: Vec::new(),
        env_file: Vec::new(),
        volumes: Vec::new(),
        command: None,
        restart: None,
        depends_on: Vec::new(),
        depends_on_conditions: None,
        labels: Default::default(),
        replicas: 1,
        proxy_protocol: None,
        challenge_port: 80,
        health: None,
        timeouts: Timeouts::default(),
        max_body: None,
        http: Http::H1,
        rollout: Default::default(),
        healthcheck: None,
        compose: None,
        line: 1,
    }
}

/// A service with an image.
pub(crate) fn image(name: &str) -> Service {
    Service { image: Some("127.0.0.1:1/app:1".into()), ..service(name) }
}

/// A running container at 172.18.0.2, without health check and labels of ours.
pub(crate) fn container(id: &str, compose_project: &str, compose_service: &str) -> Container {
    Container {
        id: ContainerId::from(id),
        name: format!("{compose_service}-{id}"),
        created: "2026-11-22T21:00:00Z".into(),
        started_at: "2026-11-22T21:00:01Z".into(),
        compose_project: compose_project.into(),
        compose_service: Some(compose_service.into()),
        oneoff: false,
        running: true,
        restarting: false,
        paused: false,
        health: Health::None,
        address: Some([172, 18, 0, 2].into()),
        port: None,
        http: None,
        image: "127.0.0.1:1/app:1".into(),
        image_id: "sha256:1".into(),
        config_hash: None,
        exit_code: None,
        restart_count: 0,
    }
}

pub(crate) fn observed(containers: impl IntoIterator<Item = Container>) -> Observed {
    Observed {
        engine: Engine::Up { version: "20.10".into() },
        containers: containers.into_iter().map(|c| (c.id.clone(), c)).collect(),
    }
}

pub(crate) fn db(projects: impl IntoIterator<Item = Project>) -> Db {
    Db { projects: projects.into_iter().collect() }
}
