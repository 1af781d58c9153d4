//! What the black-box tests stand on: the built `itsup` on a root folder of its own, servers behind it, clients before it.
//!
//! A test file begins with `mod harness;` and mostly reads like this:
//!
//! ```ignore
//! let app = Testd::start();
//! let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
//! let answer = itsup.get("https://app.test/hello");
//! assert_eq!((answer.status, answer.json()["path"].as_str()), (200, Some("/hello")));
//! ```
//!
//! Everything is synchronous, listens on port 0 of loopback, waits by polling with generous deadlines ([`eventually`]), and is
//! killed when dropped. What a failed test's programs wrote to stderr is printed with its failure.

#![allow(dead_code, unused_imports, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod backend;
mod child;
mod client;
mod docker;
mod engine;
mod itsup;
mod testd;
mod tools;
mod world;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(crate) use backend::{Backend, dead_address};
pub(crate) use child::{Child, Finished, program, run, run_with_input};
pub(crate) use client::{
    Answer, Stream, plain, read_answer, read_head, read_line, send, tcp, tcp_from, tls, tls_config, tls_over,
    try_read_answer,
};
pub(crate) use docker::{Docker, NETWORK, address, docker, testd_image, testd_image_with_health, try_docker};
pub(crate) use engine::Engine;
pub(crate) use itsup::{Itsup, Root, Starter, memory};
pub(crate) use testd::Testd;
pub(crate) use tools::{curl, has_program, load, python};
pub(crate) use world::{SmallDisk, in_network_of, with_files_over, with_own_network, without_ipv6};

/// The longest that anything is waited for: far more than it takes, as the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until there is something, and panics with `what` where there is nothing within [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A db.yml of these projects, each as [`project`] or a test's own text makes it (list items, two spaces in).
pub(crate) fn db(projects: &[String]) -> String {
    if projects.is_empty() { "projects: []\n".into() } else { format!("projects:\n{}", projects.concat()) }
}

/// One project with static hosts. `service` is more keys of every service, in flow style: `http: h2c, max_body: 1KB`.
pub(crate) fn project(name: &str, domain: &str, endpoints: &[SocketAddr], service: &str) -> String {
    let mut text = format!("  - name: {name}\n    domain: \"{domain}\"\n    services:\n");
    for endpoint in endpoints {
        let (ip, port) = (endpoint.ip(), endpoint.port());
        let more = if service.is_empty() { String::new() } else { format!(", {service}") };
        text.push_str(&format!("      - {{ name: \"{ip}\", port: {port}{more} }}\n"));
    }
    text
}
