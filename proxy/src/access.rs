//! Who may come in: addresses and passwords.
//!
//! Pure; the answer of one check is data.

use std::sync::Arc;

use ipnet::IpNet;

/// Who may use a site. The default lets everyone in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Client networks that are let in; empty means all.
    pub allow: Vec<IpNet>,
    /// Users; empty means that no password is asked for.
    pub basic: Vec<BasicUser>,
}

/// One htpasswd line: a user and a password hash (bcrypt, apr1 or SHA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicUser {
    name: Arc<str>,
    hash: Arc<str>,
}

/// Why a line is not an htpasswd line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(&'static str);

impl BasicUser {
    /// Parses `user:hash`.
    pub fn parse(line: &str) -> Result<Self, AccessError> {
        let Some((name, hash)) = line.split_once(':') else {
            return Err(AccessError("an htpasswd line is `user:hash`"));
        };
        if name.is_empty() {
            return Err(AccessError("the user's name is empty"));
        }
        if !["$2y$", "$2b$", "$2a$", "$apr1$", "{SHA}"].iter().any(|p| hash.starts_with(p)) {
            return Err(AccessError("the hash must be bcrypt, apr1 or {SHA}"));
        }
        Ok(Self { name: name.into(), hash: hash.into() })
    }
}
