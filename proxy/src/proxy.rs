//! TEMP
use crate::live::{Published, Store};
use crate::{AccessLogTarget, Config, RouteTable, Status, certs::Certs};
use std::{net::{SocketAddr, TcpListener}, sync::Arc, time::{Duration, Instant}};
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);
struct Inner { http: TcpListener, https: TcpListener, live: Arc<Store>, certs: Certs }
#[derive(Debug, thiserror::Error)]
#[error("bind: {0}")]
pub struct BindError(#[from] std::io::Error);
impl Proxy {
    pub fn bind(config: Config) -> Result<Proxy, BindError> {
        Ok(Proxy(Arc::new(Inner { http: TcpListener::bind(config.http)?, https: TcpListener::bind(config.https)?, live: Store::new(), certs: Certs::new() })))
    }
    pub fn http_addr(&self) -> SocketAddr { self.0.http.local_addr().unwrap() }
    pub fn https_addr(&self) -> SocketAddr { self.0.https.local_addr().unwrap() }
    pub fn publish(&self, table: RouteTable) -> Published { self.0.live.publish(table) }
    pub fn table(&self) -> Arc<RouteTable> { self.0.live.load().table.clone() }
    pub fn generation(&self) -> u64 { self.0.live.load().generation }
    pub fn certs(&self) -> &Certs { &self.0.certs }
    pub fn status(&self) -> Status { self.0.live.statuses(Instant::now()) }
    pub fn metrics(&self) -> String { String::new() }
    pub fn reopen_access_log(&self) {}
    pub fn set_access_log(&self, _target: AccessLogTarget) {}
    pub async fn shutdown(&self, _grace: Duration) {}
}
