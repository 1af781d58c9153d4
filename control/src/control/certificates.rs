//! Which certificate every host shows: one in files, the user's or one that a CA has issued to us, then the internal
//! CA's, made into one table. And what the issuer is to know: which there should be, and which there are.
//!
//! Keeps what was read and made, so that a reload makes only what is new. Time is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use itsup_proxy::{Action, CertTable, HostPattern, RouteTable};

use crate::acme::due::{Life, unix};
use crate::acme::internal_ca::InternalCa;
use crate::acme::issuer::Wishes;
use crate::acme::store::{self, Choice, Owner, Place, Store, Wanted};
use crate::acme::wishes::{self, Held, Users};
use crate::db::{Db, Tls};
use crate::settings::{Acme, Root};

/// What a host shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The host.
    pub host: HostPattern,
    /// Its files; `None` for the internal CA's.
    pub file: Option<Place>,
    /// Whether the files are ours to renew.
    pub managed: bool,
    /// Who issued it.
    pub issuer: Arc<str>,
    /// When it ends.
    pub not_after: SystemTime,
}

/// All certificates, and where they come from.
pub struct Certificates {
    root: Root,
    store: Store,
    ca: Option<InternalCa>,
    /// What was said of the files when they were last read.
    read_warnings: Vec<String>,
    ca_warnings: Vec<String>,
    ca_fault: Option<String>,
    shown: Vec<Shown>,
    wanted: Vec<Wanted>,
    decided: Vec<Choice>,
    warnings: Vec<String>,
}

impl Certificates {
    /// Opens the internal CA; where that fails, hosts without a file of their own go without a certificate.
    pub fn open(root: Root, now: SystemTime) -> Certificates {
        let mut certificates = Certificates {
            store: Store::new(root.clone()),
            root,
            ca: None,
            read_warnings: Vec::new(),
            ca_warnings: Vec::new(),
            ca_fault: None,
            shown: Vec::new(),
            wanted: Vec::new(),
            decided: Vec::new(),
            warnings: Vec::new(),
        };
        certificates.open_ca(now);
        certificates
    }

    fn open_ca(&mut self, now: SystemTime) {
        match InternalCa::open(&self.root.ca(), now) {
            Ok((ca, notes)) => {
                self.ca = Some(ca);
                self.ca_warnings = notes;
                self.ca_fault = None;
            }
            Err(error) => self.ca_fault = Some(format!("{error}; hosts without a certificate of their own have none")),
        }
    }

    /// Reads the user's files anew, and tries the internal CA again where it failed.
    pub fn read(&mut self, db: &Db, now: SystemTime) {
        let named: BTreeSet<Place> = db
            .projects
            .iter()
            .filter(|project| project.enabled)
            .filter_map(|project| self.named(&project.tls))
            .collect();
        self.read_warnings = self.store.read(&self.root.certs(), &named);
        if self.ca.is_none() {
            self.open_ca(now);
        }
        // Whatever was decided was decided on other files.
        self.wanted.clear();
        self.shown.clear();
    }

    /// Reads the pair of one folder in `certs/` anew.
    pub fn reread(&mut self, folder: &str) {
        let place = Place::in_folder(&self.root.certs(), folder);
        let head = store::warning_head(&place);
        self.read_warnings.retain(|warning| !warning.starts_with(&head));
        self.read_warnings.extend(self.store.reread(&place));
        self.wanted.clear();
        self.shown.clear();
    }

    /// What the issuer is to get, and what there is.
    pub fn wishes(&self, db: &Db, routes: &RouteTable, acme: Option<&Acme>, now: SystemTime) -> Wishes {
        let Some(acme) = acme else { return Wishes::default() };
        let (mut users, mut held) = (Users::default(), BTreeMap::new());
        let certs = self.root.certs();
        let folder_of = |place: &Place| place.folder().filter(|_| place.cert.starts_with(&certs)).map(str::to_owned);
        for (place, loaded) in self.store.all() {
            let directory = match &loaded.owner {
                Owner::User => {
                    users.folders.extend(folder_of(place));
                    if !loaded.facts.is_over(now) {
                        users.names.extend(loaded.facts.names.iter().cloned());
                    }
                    continue;
                }
                Owner::Itsup { directory } => Some(directory.clone()),
                Owner::OldTool { directory } => directory.clone(),
            };
            let life = Life { not_before: unix(loaded.facts.not_before), not_after: unix(loaded.facts.not_after) };
            let (names, id, sha256) = (loaded.facts.names.clone(), loaded.id.clone(), loaded.sha256.clone());
            held.extend(folder_of(place).map(|folder| (folder, Held { names, life, directory, id, sha256 })));
        }
        users.folders.extend(self.store.unusable().filter_map(folder_of));
        let groups = wishes::groups(db, routes, acme.own_directory);
        Wishes { acme: Some(Arc::new(acme.clone())), groups, users, held }
    }

    /// Makes the table for these routes; `None` where it would be the one that was made last.
    pub fn table(&mut self, db: &Db, routes: &RouteTable, now: SystemTime) -> Option<CertTable> {
        let wanted = self.wanted(db, routes);
        let (choices, warnings) = store::choose(&wanted, &self.store.facts(), now);
        let ca_is_due = self.ca.as_ref().is_some_and(|ca| ca.is_due(now));
        if !ca_is_due && !self.shown.is_empty() && wanted == self.wanted && choices == self.decided {
            return None;
        }
        self.warnings = warnings;
        let table = self.fill(&wanted, &choices, now);
        self.wanted = wanted;
        self.decided = choices;
        Some(table)
    }

    fn fill(&mut self, wanted: &[Wanted], choices: &[Choice], now: SystemTime) -> CertTable {
        let by_us = wanted.iter().zip(choices).filter(|(_, choice)| **choice == Choice::Internal);
        let by_us: Vec<HostPattern> = by_us.map(|(wanted, _)| wanted.host.clone()).collect();
        let internal: Arc<str> = "itsUP internal CA".into();
        let none = HashMap::new();
        let mut leaves = &none;
        if let Some(ca) = &mut self.ca {
            let (made, fault) = ca.leaves(&by_us, now);
            self.ca_fault = fault.map(|error| error.to_string());
            leaves = made;
        }
        let mut table = CertTable::new();
        self.shown.clear();
        for (Wanted { host, .. }, choice) in wanted.iter().zip(choices) {
            let host = host.clone();
            let (cert, shown) = match choice {
                Choice::File(place) => match self.store.find(place) {
                    Some(loaded) => {
                        let (managed, issuer) = (loaded.owner != Owner::User, loaded.issuer.as_str().into());
                        let (file, not_after) = (Some(place.clone()), loaded.facts.not_after);
                        (&loaded.cert, Shown { host, file, managed, issuer, not_after })
                    }
                    None => continue,
                },
                Choice::Internal => match leaves.get(&host) {
                    Some(leaf) => {
                        let (issuer, not_after) = (internal.clone(), leaf.not_after);
                        (&leaf.cert, Shown { host, file: None, managed: false, issuer, not_after })
                    }
                    None => continue,
                },
            };
            table.insert(shown.host.clone(), cert.clone());
            self.shown.push(shown);
        }
        table
    }

    /// Every host that ends TLS here, with where its project says that its certificate comes from.
    fn wanted(&self, db: &Db, routes: &RouteTable) -> Vec<Wanted> {
        let mut from = HashMap::new();
        for project in db.projects.iter().filter(|project| project.enabled && project.tls != Tls::Auto) {
            let exact = project.domain.iter().chain(&project.redirect_from);
            let exact = exact.chain(project.services.iter().filter_map(|service| service.domain.as_ref()));
            let hosts = exact.cloned().map(HostPattern::Exact).chain(project.aliases.iter().cloned());
            from.extend(hosts.map(|host| (host, &project.tls)));
        }
        let ended_here = routes.hosts.iter().filter(|(_, action)| !matches!(action, Action::Pass(_)));
        let wanted = ended_here.map(|(host, _)| Wanted {
            host: host.clone(),
            from: match from.get(host) {
                None | Some(Tls::Auto) => store::From::Auto,
                Some(Tls::Internal) => store::From::Internal,
                Some(tls @ Tls::Files { .. }) => self.named(tls).map_or(store::From::Auto, store::From::Files),
            },
        });
        wanted.collect()
    }

    fn named(&self, tls: &Tls) -> Option<Place> {
        match tls {
            Tls::Files { cert, key } => {
                let root = self.root.path();
                Some(Place { cert: root.join(cert), key: root.join(key) })
            }
            Tls::Auto | Tls::Internal => None,
        }
    }

    /// What every host shows.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// The internal CA.
    pub fn ca(&self) -> Option<&InternalCa> {
        self.ca.as_ref()
    }

    /// When the internal CA's root ends.
    pub fn root_not_after(&self) -> Option<SystemTime> {
        self.ca.as_ref().map(InternalCa::root_not_after)
    }

    /// Everything that is not as one would expect.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.ca_fault.iter().chain(&self.ca_warnings).chain(&self.read_warnings).chain(&self.warnings)
    }
}
