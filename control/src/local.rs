//! This host's own addresses, so that an upstream that is this host can be told from another machine.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// The addresses of a host's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses(BTreeSet<IpAddr>);

impl OwnAddresses {
    /// Reads the addresses of all interfaces as they are now.
    pub fn read() -> io::Result<Self> {
        Ok(getifaddrs()?.filter_map(|interface| address(&interface)).collect())
    }

    /// Whether a connection to this address ends on this host.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || address.is_unspecified() || self.0.contains(&address)
    }

    /// Whether the host can hope to reach others by IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.0.iter().any(|address| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
    }
}

impl FromIterator<IpAddr> for OwnAddresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Self(addresses.into_iter().map(|address| address.to_canonical()).collect())
    }
}

fn address(interface: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_loopback_and_the_address_we_speak_from_are_ours() {
        let own = OwnAddresses::read().unwrap();
        assert!(own.0.contains(&"127.0.0.1".parse().unwrap()), "{own:?}");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Connecting a UDP socket sends nothing; it makes the kernel choose a source address.
        if socket.connect("192.0.2.1:9").is_ok() {
            assert!(own.contains(socket.local_addr().unwrap().ip()), "{own:?}");
        }
    }

    #[test]
    fn every_spelling_of_this_host_is_ours() {
        let own: OwnAddresses = ["172.17.0.1".parse().unwrap()].into_iter().collect();
        for (address, ours) in [
            ("172.17.0.1", true),
            ("::ffff:172.17.0.1", true),
            ("127.0.0.53", true),
            ("::1", true),
            ("0.0.0.0", true),
            ("172.17.0.2", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(own.contains(address.parse().unwrap()), ours, "{address}");
        }
    }

    #[test]
    fn link_local_addresses_are_no_ipv6() {
        for (address, ipv6) in [("::1", false), ("fe80::1", false), ("10.0.0.1", false), ("2001:db8::1", true)] {
            let own: OwnAddresses = [address.parse().unwrap()].into_iter().collect();
            assert_eq!(own.has_ipv6(), ipv6, "{address}");
        }
    }
}
