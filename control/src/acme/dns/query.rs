//! Questions to name servers: small, one at a time, over UDP and over TCP where the answer is cut short.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// An answer that takes longer is lost.
const ANSWER: Duration = Duration::from_secs(3);
const ASKED: usize = 2;

/// A name server that answers for all names.
pub(super) struct Resolver(pub SocketAddr);

impl Resolver {
    /// The system's first one.
    pub(super) fn of_the_system() -> Option<Resolver> {
        let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
        first_name_server(&text).map(|ip| Resolver(SocketAddr::new(ip, 53)))
    }

    /// The addresses of the name servers of the zone that a name is in; none where they cannot be found out.
    pub(super) async fn name_servers(&self, name: &str) -> BTreeSet<SocketAddr> {
        let mut servers = BTreeSet::new();
        // From the name upwards: the first that has name servers is the zone. The top level is nobody's own.
        let zones = std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent));
        for zone in zones.filter(|zone| zone.contains('.')) {
            let Ok(answer) = ask(self.0, zone, RecordType::NS, true).await else { return servers };
            let names: Vec<Name> = answer
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::NS(name) => Some(name.0.clone()),
                    _ => None,
                })
                .collect();
            for name in &names {
                for kind in [RecordType::A, RecordType::AAAA] {
                    let Ok(answer) = ask(self.0, &name.to_utf8(), kind, true).await else { continue };
                    let addresses = answer.answers.iter().filter_map(|record| record.data.ip_addr());
                    servers.extend(addresses.map(|ip| SocketAddr::new(ip, 53)));
                }
            }
            if !names.is_empty() {
                break;
            }
        }
        servers
    }
}

fn first_name_server(resolv_conf: &str) -> Option<IpAddr> {
    let mut lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.find_map(|rest| rest.trim().parse().ok())
}

/// The addresses of `host:port`.
pub(super) async fn addresses(server: &str) -> BTreeSet<SocketAddr> {
    match tokio::net::lookup_host(server).await {
        Ok(addresses) => addresses.collect(),
        Err(_) => BTreeSet::new(),
    }
}

/// The values of the TXT records with this name.
pub(super) async fn txt(server: SocketAddr, name: &str) -> Result<BTreeSet<String>, String> {
    let answer = ask(server, name, RecordType::TXT, true).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(format!("it answered {code}")),
    }
    let values = answer.answers.iter().filter_map(|record| match &record.data {
        RData::TXT(txt) => Some(txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect::<String>()),
        _ => None,
    });
    Ok(values.collect())
}

/// Asks one question.
pub(super) async fn ask(server: SocketAddr, name: &str, kind: RecordType, recurse: bool) -> Result<Message, String> {
    let name = fqdn(name)?;
    let mut message = Message::query();
    message.metadata.recursion_desired = recurse;
    message.add_query(Query::query(name, kind));
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let answer = exchange(server, &bytes).await?;
    Message::from_vec(&answer).map_err(|error| format!("its answer cannot be read: {error}"))
}

/// A name with its dot at the end.
pub(super) fn fqdn(name: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(name).map_err(|error| format!("{name}: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// Sends a message and returns the answer to it.
pub(super) async fn exchange(server: SocketAddr, message: &[u8]) -> Result<Vec<u8>, String> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let fault = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind(any).await.map_err(fault)?;
    socket.connect(server).await.map_err(fault)?;
    for _ in 0..ASKED {
        socket.send(message).await.map_err(fault)?;
        match timeout(ANSWER, answer_to(&socket, message)).await {
            Ok(Ok(answer)) if is_cut_short(&answer) => return exchange_tcp(server, message).await,
            Ok(answer) => return answer.map_err(fault),
            Err(_) => {}
        }
    }
    Err("no answer".into())
}

/// Other datagrams than the answer are passed over.
async fn answer_to(socket: &UdpSocket, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == message[..2] && buffer[2] & 0x80 != 0 {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

fn is_cut_short(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

async fn exchange_tcp(server: SocketAddr, message: &[u8]) -> Result<Vec<u8>, String> {
    let exchanged = timeout(ANSWER * 2, async {
        let mut tcp = TcpStream::connect(server).await?;
        let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        tcp.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        let mut answer = vec![0; usize::from(tcp.read_u16().await?)];
        tcp.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    });
    match exchanged.await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_server_counts() {
        let text =
            "# nameserver 1.1.1.1\nsearch lan\nnameserver fe80::1%eth0\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        assert_eq!(first_name_server(text), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(first_name_server(""), None);
    }
}
