use std::io::Read;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, ServerConnection};

use super::*;
use crate::certs::tests::cert;
use crate::certs::{Cert, CertTable};
use crate::host::{Host, HostPattern};

struct World {
    tls: Tls,
    certs: Arc<Certs>,
    roots: RootCertStore,
    a: Arc<Cert>,
    b: Arc<Cert>,
    challenge: Arc<Cert>,
}

fn world() -> World {
    let (a, b, challenge) = (cert(&["a.test"]), cert(&["b.test"]), cert(&["a.test"]));
    let mut table = CertTable::new();
    let mut roots = RootCertStore::empty();
    for (name, cert) in [("a.test", &a), ("b.test", &b)] {
        table.insert(HostPattern::parse(name).unwrap(), cert.clone());
    }
    for cert in [&a, &b, &challenge] {
        roots.add(cert.chain()[0].clone()).unwrap();
    }
    let (certs, challenges) = (Arc::new(Certs::new()), Arc::new(Challenges::new()));
    certs.publish(table);
    challenges.set_alpn(Host::parse("a.test").unwrap(), challenge.clone());
    World { tls: Tls::new(certs.clone(), challenges).unwrap(), certs, roots, a, b, challenge }
}

impl World {
    /// A client, with its own session cache.
    fn client(&self, alpn: &[&[u8]], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// Bytes to and fro until both sides are done; the client's name is `sni`.
fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    sni: &str,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    let mut client = ClientConnection::new(client.clone(), name)?;
    let mut server = ServerConnection::new(server.clone())?;
    // A TLS 1.3 ticket follows the handshake: so go on until there is nothing to say.
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    let _ = client.reader().read(&mut []);
    Ok((server, client))
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
const ONLY_12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

#[test]
fn the_name_chooses_the_certificate_and_aes_128_comes_first() {
    let world = world();
    let client = Arc::new(world.client(&[b"h2", b"http/1.1"], BOTH));
    for (sni, wanted) in [("a.test", &world.a), ("B.TEST", &world.b)] {
        let (server, client) = shake(&world.tls.sites, &client, sni).unwrap();
        assert_eq!(client.peer_certificates().unwrap(), wanted.chain(), "{sni}");
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let suite = server.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}

#[test]
fn an_unknown_name_is_shown_nothing() {
    let world = world();
    let client = Arc::new(world.client(&[b"h2"], BOTH));
    assert!(shake(&world.tls.sites, &client, "c.test").is_err());
}

#[test]
fn tls_1_2_works_and_http_1_1_is_chosen_where_it_is_all_there_is() {
    let world = world();
    let client = Arc::new(world.client(&[b"http/1.1"], ONLY_12));
    let (server, _) = shake(&world.tls.sites, &client, "a.test").unwrap();
    assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(server.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn the_same_name_resumes() {
    for versions in [BOTH, ONLY_12] {
        let world = world();
        let client = Arc::new(world.client(&[b"h2"], versions));
        let (first, _) = shake(&world.tls.sites, &client, "a.test").unwrap();
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        let (second, _) = shake(&world.tls.sites, &client, "a.test").unwrap();
        assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed), "{versions:?}");
    }
}

/// What `tls.rs` says of 421 rests on this.
#[test]
fn a_ticket_of_one_name_does_not_resume_another() {
    for versions in [BOTH, ONLY_12] {
        let world = world();
        let mut config = world.client(&[b"h2"], versions);
        let store = Arc::new(OneStore(rustls::client::ClientSessionMemoryCache::new(32)));
        config.resumption = rustls::client::Resumption::store(store);
        let client = Arc::new(config);
        shake(&world.tls.sites, &client, "a.test").unwrap();
        let (server, client) = shake(&world.tls.sites, &client, "b.test").unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full), "{versions:?}");
        assert_eq!(client.peer_certificates().unwrap(), world.b.chain());
    }
}

#[test]
fn a_challenge_hello_is_shown_the_challenge_and_nothing_else() {
    let world = world();
    let client = Arc::new(world.client(&[ACME_TLS], BOTH));
    let (server, shown) = shake(&world.tls.challenges, &client, "a.test").unwrap();
    assert_eq!(shown.peer_certificates().unwrap(), world.challenge.chain());
    assert_eq!(server.alpn_protocol(), Some(ACME_TLS));
    assert!(shake(&world.tls.challenges, &client, "b.test").is_err(), "no challenge is open for it");
    assert!(shake(&world.tls.sites, &client, "a.test").is_err(), "a site's certificate answers no challenge");
    let mixed = Arc::new(world.client(&[b"h2", ACME_TLS], BOTH));
    assert!(shake(&world.tls.sites, &mixed, "a.test").is_err());
    let plain = Arc::new(world.client(&[b"h2"], BOTH));
    assert!(shake(&world.tls.challenges, &plain, "a.test").is_err(), "the challenge's certificate serves no site");
}

#[test]
fn a_publish_counts_from_the_next_handshake() {
    let world = world();
    world.certs.publish(CertTable::new());
    let client = Arc::new(world.client(&[b"h2"], BOTH));
    assert!(shake(&world.tls.sites, &client, "a.test").is_err());
}

/// A client that offers any session to any server: all names are one to it.
#[derive(Debug)]
struct OneStore(rustls::client::ClientSessionMemoryCache);

fn one() -> ServerName<'static> {
    ServerName::try_from("one.test").unwrap()
}

impl rustls::client::ClientSessionStore for OneStore {
    fn set_kx_hint(&self, _: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(one(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&one())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(one(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&one())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one())
    }
}
