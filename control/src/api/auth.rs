//! Who is asking, and what he may.
//!
//! The control socket's callers may do everything: its file's rights say who they are. Everybody else brings a key, but to
//! what is public. Who brings a wrong one waits for the answer, longer each time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use super::{Api, Door, Problem};
use crate::jobs::Origin;
use crate::settings::ApiKey;

/// What the first wrong key costs; every further one twice as much.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// What a wrong key costs at the most.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// After this long without a wrong key an address is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);
/// The most addresses that are remembered.
const REMEMBERED: usize = 10_000;
/// The most that wait for their refusal at once; further ones are refused without being looked at.
const WAITING: usize = 256;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// By the control socket.
    Local,
    /// With this key.
    Key { name: Option<String>, read_only: bool },
    /// Nobody in particular, for what is public; from this address.
    Nobody(Option<IpAddr>),
}

impl Caller {
    pub(super) fn origin(&self) -> Origin {
        match self {
            Caller::Local => Origin::Cli,
            Caller::Key { name, .. } => Origin::Api { key: name.clone() },
            Caller::Nobody(_) => Origin::Api { key: None },
        }
    }

    /// Whether he may see passwords and the like.
    pub(super) fn sees_secrets(&self) -> bool {
        matches!(self, Caller::Local | Caller::Key { read_only: false, .. })
    }

    /// Whether he may write what gives root on this host without `ITSUP_API_COMPOSE`.
    pub(super) fn is_local(&self) -> bool {
        *self == Caller::Local
    }
}

/// Lets in who may come in, and says who it is to whoever is asked.
pub(super) async fn guard(State((api, door)): State<(Api, Door)>, mut request: Request, next: Next) -> Response {
    let caller = if door == Door::Control { Ok(Caller::Local) } else { judge(&api, door, &request) };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(Refusal::Now(problem)) => problem.into_response(),
        Err(Refusal::Slowly(address)) => *api.throttle.refuse(address, "a request with a wrong key or none").await,
    }
}

/// How somebody is refused.
enum Refusal {
    Now(Box<Problem>),
    /// With a wrong key, or none, from this address.
    Slowly(Option<IpAddr>),
}

fn judge(api: &Api, door: Door, request: &Request) -> Result<Caller, Refusal> {
    let path = request.uri().path();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let address = client(door, peer, request.headers());
    let nobody = Ok(Caller::Nobody(address));
    let rules = api.control.settings().map(|settings| settings.api_rules).unwrap_or_default();
    match path {
        "/healthz" => return nobody,
        // How this host is doing is not for those whom the proxy lets in.
        "/metrics" if door == Door::Proxy => return Err(refuse(Problem::not_found("there is nothing here"))),
        "/metrics" if peer.is_some_and(|peer| is_direct_loopback(peer, request.headers())) => return nobody,
        "/metrics" if rules.keys.is_empty() => {
            return Err(refuse(Problem::new(StatusCode::FORBIDDEN, "only for direct connections from this host")));
        }
        _ if rules.keys.is_empty() => {
            let problem = Problem::not_found("there is nothing here");
            return Err(refuse(problem.hint("set API_KEY in .env to open the API")));
        }
        "/docs" | "/openapi.json" | "/hook" => return nobody,
        _ => {}
    }
    let Some(key) = bearer(request.headers()).and_then(|key| find(&rules.keys, key)) else {
        return Err(Refusal::Slowly(address));
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD) && !path.starts_with("/update-upstream");
    if key.read_only && !reads {
        return Err(refuse(Problem::new(StatusCode::FORBIDDEN, "this key may only look")));
    }
    Ok(Caller::Key { name: key.name.clone(), read_only: key.read_only })
}

fn refuse(problem: Problem) -> Refusal {
    Refusal::Now(Box::new(problem))
}

/// The key in `Authorization: Bearer KEY`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// The key that this is. All are compared, so that the time tells nothing.
pub(super) fn find<'k>(keys: &'k [ApiKey], given: &[u8]) -> Option<&'k ApiKey> {
    keys.iter().fold(None, |found, key| if key.secret.is(given) { Some(key) } else { found })
}

/// The client's address: the peer's, or what the proxy says of it, which puts the client it knows last.
fn client(door: Door, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
    match door {
        Door::Proxy => {
            let all = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
            all.rsplit(',').next()?.trim().parse().ok()
        }
        Door::Tcp | Door::Control => peer.map(|peer| peer.ip().to_canonical()),
    }
}

/// A proxy on this host is a loopback peer too, and says for whom it asks.
pub(super) fn is_direct_loopback(peer: SocketAddr, headers: &HeaderMap) -> bool {
    const FORWARDED: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
    peer.ip().to_canonical().is_loopback() && !FORWARDED.iter().any(|name| headers.contains_key(*name))
}

/// How often an address has come with a wrong key, and when last.
type Tries = HashMap<Option<IpAddr>, (u32, Instant)>;

/// Slows down who tries keys. Clones are the same one.
#[derive(Clone)]
pub(super) struct Throttle {
    tries: Arc<Mutex<Tries>>,
    waiting: Arc<Semaphore>,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { tries: Arc::default(), waiting: Arc::new(Semaphore::new(WAITING)) }
    }
}

impl Throttle {
    /// The refusal of a wrong key, in its time.
    pub(super) async fn refuse(&self, address: Option<IpAddr>, what: &str) -> Box<Response> {
        let (tries, delay) = self.count(address.map(network), Instant::now());
        let from = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        tracing::warn!(tries, "{what} from {from}");
        let Ok(_turn) = self.waiting.try_acquire() else {
            let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong keys").into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            return Box::new(response);
        };
        tokio::time::sleep(delay).await;
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "this needs a key, and not that one");
        let mut response = problem.hint("send `Authorization: Bearer API_KEY`").into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Box::new(response)
    }

    fn count(&self, address: Option<IpAddr>, now: Instant) -> (u32, Duration) {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if tries.len() >= REMEMBERED && !tries.contains_key(&address) {
            tries.retain(|_, (_, last)| now.saturating_duration_since(*last) < FORGOTTEN);
            if tries.len() >= REMEMBERED {
                tries.clear();
            }
        }
        let (count, last) = tries.entry(address).or_insert((0, now));
        if now.saturating_duration_since(*last) >= FORGOTTEN {
            *count = 0;
        }
        *count = count.saturating_add(1);
        *last = now;
        (*count, (FIRST_DELAY * 2u32.saturating_pow((*count - 1).min(16))).min(LONGEST_DELAY))
    }
}

/// Of IPv6, the network: one client has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_cost_more_each_time_and_are_forgotten() {
        let throttle = Throttle::default();
        let address = Some("10.0.0.1".parse().unwrap());
        let start = Instant::now();
        let delays: Vec<u128> = (0..8).map(|_| throttle.count(address, start).1.as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(throttle.count(None, start).0, 1);
        assert_eq!(throttle.count(address, start + FORGOTTEN).0, 1);
        for n in 0..2 * REMEMBERED as u32 {
            throttle.count(Some(IpAddr::from(n.to_be_bytes())), start);
        }
        assert!(throttle.tries.lock().unwrap().len() <= REMEMBERED);
    }

    #[test]
    fn a_key_is_read_as_rfc_6750_writes_it() {
        let with =
            |value: &'static str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        assert_eq!(bearer(&with("Bearer abc")), Some(&b"abc"[..]));
        assert_eq!(bearer(&with("bearer  abc ")), Some(&b"abc"[..]));
        for wrong in ["Basic abc", "Bearer", "abc", ""] {
            assert_eq!(bearer(&with(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn the_client_is_the_last_that_the_proxy_names() {
        let headers = HeaderMap::from_iter([(
            header::HeaderName::from_static("x-forwarded-for"),
            HeaderValue::from_static("1.1.1.1, 2.2.2.2"),
        )]);
        assert_eq!(client(Door::Proxy, None, &headers), Some("2.2.2.2".parse().unwrap()));
        let peer = "3.3.3.3:1".parse().unwrap();
        assert_eq!(client(Door::Tcp, Some(peer), &headers), Some("3.3.3.3".parse().unwrap()));
    }
}
