//! A server that does exactly what a test says: a closure for each connection.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::PATIENCE;

/// A listener on loopback whose connections are given to a closure, each on a thread of its own, until the test ends.
pub(crate) struct Backend {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Backend {
    /// On 127.0.0.1; the closure is told which connection it has, from 1.
    #[track_caller]
    pub(crate) fn start(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Backend {
        Backend::on("127.0.0.1", serve)
    }

    /// On this loopback address.
    #[track_caller]
    pub(crate) fn on(ip: &str, serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (connections.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let serve = serve.clone();
                std::thread::spawn(move || serve(number, stream));
            }
        });
        Backend { addr, connections }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections have been accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An address on this loopback IP where nobody listens, as somebody has just let go of it.
#[track_caller]
pub(crate) fn dead_address(ip: &str) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}
