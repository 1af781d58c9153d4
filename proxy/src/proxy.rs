//! TEMP
use std::{net::SocketAddr, sync::{Arc, Mutex}, time::Duration};
use crate::{Config, RouteTable, Status, AccessLogTarget, certs::Certs, status::InFlight};
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);
struct Inner { http: SocketAddr, https: SocketAddr, table: Mutex<(u64, Arc<RouteTable>)>, certs: Certs }
#[derive(Debug, thiserror::Error)]
#[error("bind")]
pub struct BindError;
pub struct Published { pub generation: u64, pub changed: bool, pub draining: Draining }
pub struct Draining;
impl Draining { pub fn in_flight(&self) -> InFlight { InFlight::default() } }
impl Proxy {
    pub fn bind(config: Config) -> Result<Proxy, BindError> {
        Ok(Proxy(Arc::new(Inner { http: config.http, https: config.https, table: Mutex::default(), certs: Certs::default() })))
    }
    pub fn http_addr(&self) -> SocketAddr { self.0.http }
    pub fn https_addr(&self) -> SocketAddr { self.0.https }
    pub fn publish(&self, table: RouteTable) -> Published {
        let mut held = self.0.table.lock().unwrap();
        let changed = held.0 == 0 || *held.1 != table;
        if changed { *held = (held.0 + 1, Arc::new(table)); }
        Published { generation: held.0, changed, draining: Draining }
    }
    pub fn table(&self) -> Arc<RouteTable> { self.0.table.lock().unwrap().1.clone() }
    pub fn generation(&self) -> u64 { self.0.table.lock().unwrap().0 }
    pub fn certs(&self) -> &Certs { &self.0.certs }
    pub fn status(&self) -> Status { Status { generation: self.generation(), hosts: self.table().hosts.len(), ..Status::default() } }
    pub fn metrics(&self) -> String { String::new() }
    pub fn reopen_access_log(&self) {}
    pub fn set_access_log(&self, _target: AccessLogTarget) {}
    pub async fn shutdown(&self, _grace: Duration) {}
}
