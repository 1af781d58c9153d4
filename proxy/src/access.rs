//! Who may come in: addresses and passwords.
//!
//! Pure but for the memory of proven passwords; the answer of one check is data. Hashing a password is slow on purpose, so
//! it is handed back to the caller as a [`Verification`], to be run off the data thread.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ipnet::IpNet;
use md5::{Digest, Md5};
use sha1::Sha1;

/// The longest user name and password together, with their colon.
const MAX_CREDENTIALS: usize = 512;

/// Who may use a site. The default lets everyone in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Client networks that are let in; empty means all.
    pub allow: Vec<IpNet>,
    /// Users; empty means that no password is asked for.
    pub basic: Vec<BasicUser>,
}

/// Why a line is no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no colon, or nothing before it.
    #[error("a user is a line as `htpasswd` writes it, `name:hash`")]
    NoUser,
    /// The hash is of a kind that is not safe or not known.
    #[error(
        "the password of `{0}` is not hashed with bcrypt, apr1 or SHA (plain text and crypt are not taken): make the line with `htpasswd -nB {0}`"
    )]
    Kind(String),
    /// The hash says one kind, and is none.
    #[error("the password hash of `{0}` is damaged: make the line anew with `htpasswd -nB {0}`")]
    Damaged(String),
}

/// One htpasswd line: a user and a password hash (bcrypt, apr1 or SHA).
#[derive(Clone, PartialEq, Eq)]
pub struct BasicUser {
    name: Arc<str>,
    hash: Arc<str>,
}

impl BasicUser {
    /// Reads a line as `htpasswd` writes it.
    pub fn parse(line: &str) -> Result<Self, AccessError> {
        let (name, hash) = line.trim().split_once(':').ok_or(AccessError::NoUser)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(AccessError::NoUser);
        }
        match Hash::parse(hash) {
            Some(Some(_)) => Ok(Self { name: name.into(), hash: hash.into() }),
            Some(None) => Err(AccessError::Damaged(name.to_owned())),
            None => Err(AccessError::Kind(name.to_owned())),
        }
    }

    /// Returns the user's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for BasicUser {
    type Err = AccessError;

    fn from_str(line: &str) -> Result<Self, AccessError> {
        Self::parse(line)
    }
}

/// Without the hash, so that it comes into no log.
impl fmt::Debug for BasicUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What one check comes to.
#[derive(Debug)]
pub enum Check {
    /// Let the request in.
    Allowed,
    /// This address may not come in: 403.
    Forbidden,
    /// No credentials, or none that can be read: 401 with `WWW-Authenticate: Basic`.
    Unauthorized,
    /// Run this off the data thread: true lets the request in, false is [`Check::Unauthorized`].
    Verify(Verification),
}

impl Access {
    /// Checks a client's address, then the value of its `Authorization` field.
    ///
    /// A user whose password has been proven lately is known again without hashing it.
    pub fn check(&self, client: IpAddr, authorization: Option<&[u8]>) -> Check {
        if !self.allow.is_empty() {
            let client = client.to_canonical();
            if !self.allow.iter().any(|net| net.contains(&client)) {
                return Check::Forbidden;
            }
        }
        if self.basic.is_empty() {
            return Check::Allowed;
        }
        let mut buf = [0; MAX_CREDENTIALS];
        let Some((name, password)) = authorization.and_then(|value| credentials(value, &mut buf)) else {
            return Check::Unauthorized;
        };
        let known = self.basic.iter().find(|user| user.name.as_bytes() == name);
        // A name that is not known costs as much as one that is: it is checked against a user's hash, always the same one.
        let user = known.unwrap_or_else(|| &self.basic[PROVEN.any(name, self.basic.len())]);
        let proof = PROVEN.proof(&user.hash, password);
        if known.is_some() && PROVEN.holds(proof) {
            return Check::Allowed;
        }
        Check::Verify(Verification {
            hash: user.hash.clone(),
            password: password.into(),
            proof: known.is_some().then_some(proof),
        })
    }
}

/// A password that is still to be hashed; takes milliseconds to tenths of a second.
pub struct Verification {
    hash: Arc<str>,
    password: Box<[u8]>,
    /// None where the user is not known, and nothing can be proven.
    proof: Option<Proof>,
}

impl Verification {
    /// Hashes the password and tells whether it is the user's; remembers it where it is.
    pub fn run(self) -> bool {
        let matches = match Hash::parse(&self.hash) {
            Some(Some(hash)) => hash.verify(&self.password),
            _ => false,
        };
        let Some(proof) = self.proof.filter(|_| matches) else { return false };
        PROVEN.remember(proof);
        true
    }
}

impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verification").finish_non_exhaustive()
    }
}

/// The name and password of a `Basic` field's value (RFC 7617).
fn credentials<'a>(value: &[u8], buf: &'a mut [u8; MAX_CREDENTIALS]) -> Option<(&'a [u8], &'a [u8])> {
    let space = memchr::memchr(b' ', value)?;
    let (scheme, encoded) = value.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let encoded = encoded.trim_ascii();
    let len = STANDARD.decode_slice(encoded, buf).or_else(|_| STANDARD_NO_PAD.decode_slice(encoded, buf)).ok()?;
    let text = &buf[..len];
    let colon = memchr::memchr(b':', text)?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// A password hash, by its kind.
enum Hash<'a> {
    Bcrypt(&'a str),
    Apr1 { salt: &'a str, digest: &'a str },
    Sha([u8; 20]),
}

impl<'a> Hash<'a> {
    /// `None` for a kind that is not taken, `Some(None)` for a damaged hash of one that is.
    fn parse(text: &'a str) -> Option<Option<Self>> {
        if ["$2a$", "$2b$", "$2y$"].iter().any(|kind| text.starts_with(kind)) {
            // The kind, two digits, and 22 and 31 characters of bcrypt's base64.
            let whole = text.len() == 60
                && text[4..].split_once('$').is_some_and(|(cost, rest)| {
                    cost.parse().is_ok_and(|cost: u32| (4..=31).contains(&cost)) && rest.bytes().all(is_crypt64)
                });
            return Some(whole.then_some(Self::Bcrypt(text)));
        }
        if let Some(rest) = text.strip_prefix("$apr1$") {
            let whole = rest.split_once('$').filter(|(salt, digest)| {
                (1..=8).contains(&salt.len())
                    && salt.bytes().all(is_crypt64)
                    && digest.len() == 22
                    && digest.bytes().all(is_crypt64)
            });
            return Some(whole.map(|(salt, digest)| Self::Apr1 { salt, digest }));
        }
        let encoded = text.strip_prefix("{SHA}")?;
        Some(STANDARD.decode(encoded).ok().and_then(|digest| digest.try_into().ok()).map(Self::Sha))
    }

    fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Apr1 { salt, digest } => same(&apr1(password, salt.as_bytes()), digest.as_bytes()),
            Self::Sha(digest) => same(&Sha1::digest(password), digest),
        }
    }
}

/// Compares without telling by its time where two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

const CRYPT64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn is_crypt64(byte: u8) -> bool {
    CRYPT64.contains(&byte)
}

/// Apache's variant of the MD5 crypt: 1,000 rounds of MD5 over password and salt in changing order.
fn apr1(password: &[u8], salt: &[u8]) -> [u8; 22] {
    let mixed = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update(b"$apr1$").chain_update(salt);
    for part in password.chunks(16) {
        first.update(&mixed[..part.len()]);
    }
    let mut bits = password.len();
    while bits > 0 {
        if bits & 1 == 1 {
            first.update([0]);
        } else {
            first.update(&password[..1]);
        }
        bits >>= 1;
    }
    let mut digest = first.finalize();
    for round in 0..1000 {
        let mut next = Md5::new();
        if round % 2 == 1 {
            next.update(password);
        } else {
            next.update(digest);
        }
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        if round % 2 == 1 {
            next.update(digest);
        } else {
            next.update(password);
        }
        digest = next.finalize();
    }
    let mut text = [0; 22];
    let groups = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
    for (group, [a, b, c]) in groups.into_iter().enumerate() {
        let bits = u32::from_be_bytes([0, digest[a], digest[b], digest[c]]);
        for place in 0..4 {
            text[group * 4 + place] = CRYPT64[(bits >> (6 * place)) as usize & 63];
        }
    }
    text[20] = CRYPT64[usize::from(digest[11] & 63)];
    text[21] = CRYPT64[usize::from(digest[11] >> 6)];
    text
}

/// A keyed hash of a password and of what it was proven against; without the key, which changes with each process, it says nothing.
type Proof = [u64; 2];

/// The passwords proven of late: a fixed table that is read and written without a lock.
///
/// A proof is two words, and two writers may leave halves of theirs in one place: such a pair is no password's proof, so
/// the worst is a password hashed once more.
struct Proven {
    keys: [RandomState; 2],
    places: [[AtomicU64; 2]; PLACES],
}

/// How many proofs there is room for.
const PLACES: usize = 1024;
/// How many places one proof may be in.
const WAYS: usize = 4;

static PROVEN: LazyLock<Proven> = LazyLock::new(|| Proven {
    keys: [RandomState::new(), RandomState::new()],
    places: [const { [const { AtomicU64::new(0) }; 2] }; PLACES],
});

impl Proven {
    fn proof(&self, hash: &str, password: &[u8]) -> Proof {
        let word = |key: &RandomState| {
            let mut hasher = key.build_hasher();
            hasher.write_usize(hash.len());
            hasher.write(hash.as_bytes());
            hasher.write(password);
            hasher.finish()
        };
        // Zeros are an empty place.
        [word(&self.keys[0]) | 1, word(&self.keys[1])]
    }

    /// A number below `len`, always the same one for a name.
    fn any(&self, name: &[u8], len: usize) -> usize {
        (self.keys[0].hash_one(name) % len as u64) as usize
    }

    fn places(&self, proof: Proof) -> &[[AtomicU64; 2]] {
        let set = (proof[1] >> 32) as usize % (PLACES / WAYS) * WAYS;
        &self.places[set..set + WAYS]
    }

    fn holds(&self, proof: Proof) -> bool {
        self.places(proof)
            .iter()
            .any(|place| place[0].load(Ordering::Relaxed) == proof[0] && place[1].load(Ordering::Relaxed) == proof[1])
    }

    fn remember(&self, proof: Proof) {
        let places = self.places(proof);
        let empty = places.iter().find(|place| place[0].load(Ordering::Relaxed) == 0);
        // A full set loses one of its own, whichever the newcomer's bits name.
        let place = empty.unwrap_or(&places[proof[1] as usize % WAYS]);
        place[0].store(proof[0], Ordering::Relaxed);
        place[1].store(proof[1], Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "192.0.2.1";
    // All of them `secret`, made by htpasswd and openssl.
    const BCRYPT: &str = "$2y$05$QHk4gHoy0QWRBV9eo4t1IucWmglyT1ylYW22EFkjyGKR647vUsM.m";
    const APR1: &str = "$apr1$abcdefgh$h9FWgUz3n9YxylKLlR5SQ/";
    const SHA: &str = "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=";

    fn access(lines: &[String]) -> Access {
        Access { allow: Vec::new(), basic: lines.iter().map(|line| BasicUser::parse(line).unwrap()).collect() }
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    fn check(access: &Access, authorization: &str) -> Check {
        access.check(CLIENT.parse().unwrap(), Some(authorization.as_bytes()))
    }

    /// What a check comes to in the end, and whether it took hashing.
    fn outcome(access: &Access, authorization: &str) -> (bool, bool) {
        match check(access, authorization) {
            Check::Allowed => (true, false),
            Check::Verify(verification) => (verification.run(), true),
            Check::Forbidden | Check::Unauthorized => (false, false),
        }
    }

    #[test]
    fn lets_addresses_in() {
        let access =
            Access { allow: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()], basic: Vec::new() };
        for (client, allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("11.0.0.1", false),
            ("2001:db9::1", false),
        ] {
            let got = access.check(client.parse().unwrap(), None);
            assert!(matches!(got, Check::Allowed) == allowed && matches!(got, Check::Forbidden) != allowed, "{client}");
        }
        assert!(matches!(Access::default().check(CLIENT.parse().unwrap(), None), Check::Allowed));
    }

    #[test]
    fn every_kind_of_hash_is_checked() {
        for hash in [BCRYPT, APR1, SHA, &BCRYPT.replace("$2y$", "$2a$"), &BCRYPT.replace("$2y$", "$2b$")] {
            // A name of its own, so that nothing is remembered from elsewhere.
            let access = access(&[format!("kinds:{hash}")]);
            assert_eq!(outcome(&access, &basic("kinds:wrong")), (false, true), "{hash}");
            assert_eq!(outcome(&access, &basic("kinds:")), (false, true), "{hash}");
            assert!(outcome(&access, &basic("kinds:secret")).0, "{hash}");
        }
    }

    #[test]
    fn a_proven_password_is_known_again() {
        let salted = "{SHA}".to_owned() + &STANDARD.encode(Sha1::digest("again and again"));
        let access = access(&[format!("ann:{salted}"), format!("bob:{SHA}")]);
        assert_eq!(outcome(&access, &basic("ann:again and again")), (true, true));
        assert_eq!(outcome(&access, &basic("ann:again and again")), (true, false));
        assert_eq!(outcome(&access, &basic("ann:wrong")), (false, true));
        assert_eq!(outcome(&access, &basic("bob:again and again")), (false, true), "another user's");
        assert_eq!(outcome(&access, &basic("eve:again and again")), (false, true), "no user's");
        let changed = self::access(&[format!("ann:{SHA}")]);
        assert_eq!(outcome(&changed, &basic("ann:again and again")), (false, true), "after a change");
    }

    #[test]
    fn unknown_users_cost_as_much_and_never_get_in() {
        let access = access(&[format!("ann:{BCRYPT}")]);
        for _ in 0..2 {
            let Check::Verify(verification) = check(&access, &basic("eve:secret")) else { panic!("not hashed") };
            assert_eq!(&*verification.hash, BCRYPT);
            assert!(!verification.run(), "right password, wrong name");
        }
    }

    #[test]
    fn what_is_not_basic_is_unauthorized() {
        let access = access(&[format!("ann:{SHA}")]);
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic !",
            "Bearer x",
            "Basicx YTpi",
            "Basic YTpi YTpi",
            &basic("no colon"),
            &basic(&format!("ann:{}", "x".repeat(600))),
        ] {
            assert!(matches!(check(&access, value), Check::Unauthorized), "{value}");
        }
        assert!(matches!(access.check(CLIENT.parse().unwrap(), None), Check::Unauthorized));
        assert!(outcome(&access, &basic("ann:secret").replace("Basic", "bASIC ").replace('=', "")).0);
    }

    #[test]
    fn says_why_a_line_is_no_user() {
        let kind = || Err(AccessError::Kind("ann".into()));
        let damaged = || Err(AccessError::Damaged("ann".into()));
        for (line, want) in [
            ("ann", Err(AccessError::NoUser)),
            (":x", Err(AccessError::NoUser)),
            ("", Err(AccessError::NoUser)),
            ("ann:secret", kind()),
            ("ann:", kind()),
            ("ann:rl.3StKT.4T8M", kind()),
            ("ann:$1$abc$xyz", kind()),
            ("ann:$6$abc$xyz", kind()),
            ("ann:$2x$05$abc", kind()),
            ("ann:$2y$05$abc", damaged()),
            ("ann:$apr1$abc", damaged()),
            ("ann:$apr1$abcdefghi$h9FWgUz3n9YxylKLlR5SQ/", damaged()),
            ("ann:$apr1$é$x", damaged()),
            ("ann:{SHA}x", damaged()),
            ("ann:{SHA}YTpi", damaged()),
        ] {
            assert_eq!(BasicUser::parse(line).map(drop), want, "{line}");
        }
        let multibyte = format!("ann:$2y$05$é{}", "x".repeat(51));
        assert_eq!(BasicUser::parse(&multibyte).map(drop), damaged());
        let user = BasicUser::parse(&format!("ann:{APR1}\n")).unwrap();
        assert_eq!((user.name(), &*user.hash), ("ann", APR1));
        assert!(!format!("{user:?}").contains("apr1"), "no hash in logs");
    }

    #[test]
    fn apr1_agrees_with_openssl() {
        for (password, salt, want) in [
            ("secret", "abcdefgh", "h9FWgUz3n9YxylKLlR5SQ/"),
            ("längeres Passwort, 32 Zeichen und mehr ...", "x", "Ee682yxvH3VYCwGWUVZf90"),
            ("", "12345678", "sHuPAw7VA9xjRbJz7zKV7/"),
        ] {
            assert_eq!(std::str::from_utf8(&apr1(password.as_bytes(), salt.as_bytes())), Ok(want));
        }
    }

    #[test]
    fn the_memory_is_bounded_and_forgets() {
        let memory = Proven {
            keys: [RandomState::new(), RandomState::new()],
            places: [const { [const { AtomicU64::new(0) }; 2] }; PLACES],
        };
        let proofs: Vec<_> = (0..20_000u32).map(|n| memory.proof("hash", &n.to_le_bytes())).collect();
        for &proof in &proofs {
            assert!(!memory.holds(proof));
            memory.remember(proof);
            assert!(memory.holds(proof));
        }
        let held = proofs.iter().filter(|&&proof| memory.holds(proof)).count();
        assert!((PLACES / 2..=PLACES).contains(&held), "{held}");
        assert_ne!(memory.proof("ab", b"c"), memory.proof("a", b"bc"));
    }
}
