//! Looks at a host as the CA will, through its public name, and says what to mend. Advice, never a veto: behind a
//! router that does not turn packets around, or with a DNS of its own inside, a host may be right and look wrong.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use itsup_proxy::Challenges;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For all of it; an order waits for this.
const LIMIT: Duration = Duration::from_secs(4);
const LONGEST_ANSWER: u64 = 8 * 1024;

/// Asks for a probe on :80 of this name; returns advice where it is not ours that answers.
pub(super) async fn advice(name: &str, challenges: &Challenges) -> Option<String> {
    let addresses: Vec<IpAddr> = match timeout(LIMIT, tokio::net::lookup_host((name, 80))).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        Ok(Err(_)) => Vec::new(),
        Err(_) => return Some(format!("DNS does not answer for {name}")),
    };
    let Some(address) = addresses.first().copied() else {
        return Some(format!("DNS has no address for {name}: add an A record (or AAAA) that points here"));
    };
    look(name, SocketAddr::new(address, 80), challenges).await
}

async fn look(name: &str, address: SocketAddr, challenges: &Challenges) -> Option<String> {
    // Nobody can guess it, so who answers it right is us.
    let (token, answer) = (random(), random());
    challenges.set(token.clone(), answer.clone());
    let asked = timeout(LIMIT, ask(name, address, &token)).await;
    challenges.remove(&token);
    let shown = if address.port() == 80 { address.ip().to_string() } else { address.to_string() };
    match asked {
        Ok(Ok(text)) if text.ends_with(&answer) => None,
        Ok(Ok(_)) => {
            Some(format!("DNS for {name} points to {shown}, not here: something else answers there on port 80"))
        }
        Ok(Err(error)) => {
            Some(format!("DNS for {name} points to {shown}, which cannot be reached on port 80 from here: {error}"))
        }
        Err(_) => Some(format!("DNS for {name} points to {shown}, which does not answer on port 80 from here")),
    }
}

async fn ask(name: &str, address: SocketAddr, token: &str) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    let request =
        format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tcp.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

fn random() -> String {
    let mut bytes = [0; 18];
    // Without randomness the probe is weaker, and all that it guards is advice.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;

    async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 2048];
            let length = tcp.read(&mut buffer).await.unwrap();
            let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
            tcp.write_all(answer(&request).as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn it_tells_us_from_others_and_from_nobody() {
        let challenges = Arc::new(Challenges::new());
        let ours = challenges.clone();
        let here = serve(move |request| {
            let token = request.split(['/', ' ']).find(|part| ours.find(part).is_some()).unwrap();
            format!("HTTP/1.1 200 OK\r\n\r\n{}", ours.find(token).unwrap())
        });
        assert_eq!(look("a.com", here.await, &challenges).await, None);
        let elsewhere = serve(|_| "HTTP/1.1 404 Not Found\r\n\r\nnginx".into()).await;
        let advice = look("a.com", elsewhere, &challenges).await.unwrap();
        assert!(advice.starts_with(&format!("DNS for a.com points to {elsewhere}, not here")), "{advice}");
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let advice = look("a.com", nobody, &challenges).await.unwrap();
        assert!(advice.contains("cannot be reached on port 80"), "{advice}");
    }
}
