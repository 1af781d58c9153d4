//! Our account at a CA: made once, kept in `data/acme/`, one for each directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use serde::{Deserialize, Serialize};

use super::due;
use super::http;
use super::order::is_bad_nonce;
use crate::files;
use crate::settings::{Acme, Root};

/// How often a CA's "try with another nonce" is taken up.
const NONCES: usize = 8;

/// What is kept of an account.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    email: String,
    credentials: AccountCredentials,
}

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccountError {
    /// The CA said no, or nobody answered.
    #[error("account: {0}")]
    Ca(#[from] Error),
    /// The account cannot be kept, or the settings are of no use.
    #[error("account: {0}")]
    Here(String),
}

/// Reads the account of this directory, or makes one.
pub(super) async fn open(root: &Root, acme: &Acme) -> Result<Account, AccountError> {
    let path = path(root, &acme.directory);
    if let Some(kept) = read(&path) {
        let builder = Account::builder_with_http(http::client(acme.ca.as_deref()).map_err(AccountError::Here)?);
        let account = builder.from_credentials(kept.credentials).await?;
        if kept.email != acme.email {
            update_contact(&path, &account, acme).await;
        }
        return Ok(account);
    }
    // Where it cannot be kept, each start would make another.
    files::make_private_folder(&root.data())
        .and_then(|()| files::make_private_folder(&root.acme()))
        .map_err(|error| AccountError::Here(format!("{}: {error}", root.acme().display())))?;
    let (account, credentials) = create(acme).await?;
    let kept = Kept { directory: acme.directory.clone(), email: acme.email.clone(), credentials };
    save(&path, &kept).map_err(|error| AccountError::Here(format!("{}: {error}", path.display())))?;
    tracing::info!("registered with {}", acme.directory);
    Ok(account)
}

/// Puts away an account that the CA no longer knows.
pub(super) fn forget(root: &Root, acme: &Acme) {
    let path = path(root, &acme.directory);
    match files::rename(&path, &path.with_extension("json.gone")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{}: {error}; the CA does not know this account", path.display());
        }
        _ => tracing::warn!("{} does not know our account; another is made", acme.directory),
    }
}

async fn create(acme: &Acme) -> Result<(Account, AccountCredentials), AccountError> {
    let contact = format!("mailto:{}", acme.email);
    let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
    let binding = acme.binding.as_ref().map(|binding| ExternalAccountKey::new(binding.kid.clone(), &binding.hmac.0));
    let mut left = NONCES;
    loop {
        let builder = Account::builder_with_http(http::client(acme.ca.as_deref()).map_err(AccountError::Here)?);
        match builder.create(&new, acme.directory.clone(), binding.as_ref()).await {
            Err(error) if is_bad_nonce(&error) && left > 0 => left -= 1,
            made => return Ok(made?),
        }
    }
}

async fn update_contact(path: &Path, account: &Account, acme: &Acme) {
    let contact = format!("mailto:{}", acme.email);
    if let Err(error) = account.update_contacts(&[&contact]).await {
        // It is tried again at the next start; nothing depends on it.
        tracing::warn!("the CA does not take {} as our address: {error}", acme.email);
        return;
    }
    if let Some(kept) = read(path)
        && let Err(error) = save(path, &Kept { email: acme.email.clone(), ..kept })
    {
        tracing::warn!("{}: {error}", path.display());
    }
}

/// A file that is torn is as good as none: another account costs nothing.
fn read(path: &Path) -> Option<Kept> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!("{}: {error}; another account is made", path.display());
            None
        }
    }
}

fn save(path: &Path, kept: &Kept) -> io::Result<()> {
    files::write_atomically(path, &serde_json::to_vec_pretty(kept)?, 0o600)
}

fn path(root: &Root, directory: &str) -> PathBuf {
    let host = directory.parse::<::http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    root.acme().join(format!("account-{host}-{:08x}.json", due::seed(directory) as u32))
}
