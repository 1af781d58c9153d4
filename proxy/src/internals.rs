//! Inner functions for fuzz targets and benches alone: no part of the API.

pub use crate::live::bench::Snapshots;

pub mod error_page {
    pub use crate::error_page::*;
}
pub mod head {
    pub use crate::head::*;
}
pub mod headers {
    pub use crate::headers::*;

    use pingora::http::RequestHeader;

    /// A request as the engine has it: its own, and the copy that goes to the upstream.
    #[derive(Clone)]
    pub struct Sample {
        downstream: RequestHeader,
        upstream: RequestHeader,
    }

    impl Sample {
        /// Reads a block that is known to be faultless.
        pub fn new(block: &str) -> Self {
            let mut lines = block.split_terminator("\r\n").filter(|line| !line.is_empty());
            let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or("/");
            let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap_or_else(|e| panic!("{e}"));
            for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
                let _ = request.append_header(name.to_owned(), value);
            }
            Self { upstream: request.clone(), downstream: request }
        }

        /// Rewrites it as for an unknown client.
        pub fn rewrite(&mut self) -> bool {
            let peer = std::net::Ipv4Addr::new(192, 0, 2, 1).into();
            let peer_value = ip_value(peer);
            let forwarded = Forwarded {
                peer: &peer_value,
                trusted: false,
                client: client_of(&self.downstream.headers, peer, &[]),
                scheme: "https",
                host: b"shop.example.com",
                port: 443,
                request_id: "0123456789abcdef",
            };
            to_upstream(&mut self.upstream, &self.downstream, &forwarded).is_ok()
        }
    }
}
pub mod hello {
    pub use crate::hello::*;
}
pub mod proxy_protocol {
    pub use crate::proxy_protocol::*;
}

pub mod welcome {
    pub use crate::welcome::*;
}

/// See `host::normalize`.
pub fn normalize<'a>(raw: &'a [u8], buf: &'a mut [u8; 256]) -> Option<&'a str> {
    crate::host::normalize(raw, buf)
}

/// See `path::has_dot_segments`.
pub fn has_dot_segments(path: &[u8]) -> bool {
    crate::path::has_dot_segments(path)
}
