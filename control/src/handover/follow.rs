//! How an older process follows where traffic goes: the endpoints of the upstreams it knows are replaced.
//!
//! Pure. Hosts, paths and policies stay as they were when it handed over: what it still serves is the last request of each
//! connection. How an endpoint is spoken to is taken from its siblings, so that this stays understood between versions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use itsup_proxy::{Address, EndpointSpec, Protocol, RouteTable, Upstream};
use serde::{Deserialize, Serialize};

/// Endpoints by their identity, with their addresses.
pub type Seats = BTreeMap<String, Seat>;

/// Where one endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seat {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<&Address> for Seat {
    fn from(address: &Address) -> Self {
        match address {
            Address::Tcp(address) => Seat::Tcp(*address),
            Address::Unix(path) => Seat::Unix(path.clone()),
        }
    }
}

impl From<Seat> for Address {
    fn from(seat: Seat) -> Self {
        match seat {
            Seat::Tcp(address) => Address::Tcp(address),
            Seat::Unix(path) => Address::Unix(path),
        }
    }
}

/// The endpoints of an upstream.
pub(super) fn seats(upstream: &Upstream) -> Seats {
    upstream.endpoints.iter().map(|endpoint| (endpoint.id.to_string(), Seat::from(&endpoint.address))).collect()
}

/// The table with these endpoints; upstreams that it does not know are none of its business.
pub(crate) fn follow(table: &RouteTable, upstreams: BTreeMap<String, Seats>) -> RouteTable {
    let mut next = table.clone();
    for (name, seats) in upstreams {
        let Some(upstream) = next.upstreams.get_mut(name.as_str()) else { continue };
        if self::seats(upstream) == seats {
            continue;
        }
        let known: BTreeMap<&str, &EndpointSpec> = upstream.endpoints.iter().map(|spec| (&*spec.id, spec)).collect();
        let sibling = upstream.endpoints.first();
        let endpoints = seats.into_iter().map(|(id, seat)| {
            let like = known.get(id.as_str()).copied().or(sibling);
            EndpointSpec {
                address: seat.into(),
                protocol: like.map_or(Protocol::H1, |like| like.protocol.clone()),
                unhealthy: known.get(id.as_str()).is_some_and(|spec| spec.unhealthy),
                id: id.into(),
            }
        });
        let endpoints = endpoints.collect();
        *upstream = Arc::new(Upstream { endpoints, policy: upstream.policy.clone() });
    }
    next
}

#[cfg(test)]
mod tests {
    use itsup_proxy::Policy;

    use super::*;

    fn spec(id: &str, port: u16, protocol: Protocol) -> EndpointSpec {
        let address = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        EndpointSpec { id: id.into(), address, protocol, unhealthy: false }
    }

    fn table(upstreams: &[(&str, Vec<EndpointSpec>)]) -> RouteTable {
        let mut table = RouteTable::default();
        for (name, endpoints) in upstreams {
            let upstream = Upstream { endpoints: endpoints.clone(), policy: Policy::default() };
            table.upstreams.insert((*name).into(), Arc::new(upstream));
        }
        table
    }

    #[test]
    fn endpoints_come_and_go_and_speak_as_their_siblings_do() {
        let old = table(&[("a/web", vec![spec("one", 1, Protocol::H2c)]), ("a/db", vec![spec("db", 9, Protocol::H1)])]);
        let new = table(&[("a/web", vec![spec("two", 2, Protocol::H2c)]), ("b/other", vec![])]);
        let told = new.upstreams.iter().map(|(name, upstream)| (name.to_string(), seats(upstream))).collect();
        let followed = follow(&old, told);
        assert_eq!(followed.upstreams["a/web"], new.upstreams["a/web"]);
        assert!(Arc::ptr_eq(&followed.upstreams["a/db"], &old.upstreams["a/db"]), "not spoken of, not touched");
        assert!(!followed.upstreams.contains_key("b/other"));
    }

    #[test]
    fn what_is_the_same_already_stays_as_it_is() {
        let mut ill = spec("one", 1, Protocol::H1);
        ill.unhealthy = true;
        let old = table(&[("a/web", vec![ill])]);
        let told = [("a/web".to_owned(), seats(&old.upstreams["a/web"]))].into();
        assert_eq!(follow(&old, told), old);
    }

    #[test]
    fn an_upstream_may_be_left_without_any() {
        let old = table(&[("a/web", vec![spec("one", 1, Protocol::H1)])]);
        let followed = follow(&old, [("a/web".to_owned(), Seats::new())].into());
        assert!(followed.upstreams["a/web"].endpoints.is_empty());
    }
}
