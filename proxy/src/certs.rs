//! TEMP
use std::{collections::BTreeMap, sync::Arc};
use rustls::{pki_types::CertificateDer, sign::SigningKey};
use crate::HostPattern;
pub struct Cert { pub chain: Vec<CertificateDer<'static>>, pub key: Arc<dyn SigningKey>, names: Vec<HostPattern> }
impl Cert {
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>, names: Vec<HostPattern>) -> Cert { Cert { chain, key, names } }
    pub fn names(&self) -> &[HostPattern] { &self.names }
}
#[derive(Default)]
pub struct CertTable(pub BTreeMap<HostPattern, Arc<Cert>>);
impl CertTable { pub fn new() -> Self { Self::default() } pub fn insert(&mut self, host: HostPattern, cert: Arc<Cert>) { self.0.insert(host, cert); } }
#[derive(Default)]
pub struct Certs(std::sync::Mutex<Arc<CertTable>>);
impl Certs {
    pub fn publish(&self, table: CertTable) { *self.0.lock().unwrap() = Arc::new(table); }
    pub fn find(&self, sni: &str) -> Option<Arc<Cert>> { let host = HostPattern::parse(sni).ok()?; self.0.lock().unwrap().0.get(&host).cloned() }
}
