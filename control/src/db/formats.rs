//! What each format that the schema names asks of a text.
//!
//! Pure; one function per format, found by name.

use itsup_proxy::{BasicUser, Host, HostPattern, PathPrefix};

use crate::units;

/// What is wrong with a text, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Misfit {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

type Verdict = Result<(), Misfit>;

/// Checks a text against the format that the schema names.
pub(super) fn check(format: &str, text: &str) -> Verdict {
    match format {
        "host" => host(text),
        "host-pattern" => host_pattern(text),
        "path" => path(text),
        "health-path" => health_path(text),
        "cidr" => cidr(text).map(drop),
        "duration" => units::parse_duration(text).map(drop).map_err(|e| Misfit::new(e.to_string())),
        "limit" => limit(text),
        "compose-duration" => compose_duration(text),
        "size" => units::parse_size(text).map(drop).map_err(|e| Misfit::new(e.to_string())),
        "htpasswd" => htpasswd(text),
        "header-name" => header_name(text),
        "header-value" => header_value(text),
        "hsts" => hsts(text),
        "name" => name(text),
        "file" | "no-nul" => no_nul(text),
        "image" => image(text),
        "volume" => volume(text),
        "restart" => restart(text),
        "repository" => repository(text),
        "variable" => variable(text),
        "assignment" => variable(text.split_once('=').map_or(text, |(name, _)| name)).and_then(|()| no_nul(text)),
        _ => Ok(()),
    }
}

fn host(text: &str) -> Verdict {
    match Host::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(bad_host(text, &error.to_string())),
    }
}

fn host_pattern(text: &str) -> Verdict {
    match HostPattern::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(bad_host(text, &error.to_string())),
    }
}

fn bad_host(text: &str, cause: &str) -> Misfit {
    let misfit = Misfit::new(format!("`{text}` is not a host name: {cause}"));
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split(['/', '?', '#']).next().unwrap_or(bare);
    let bare = bare.rsplit_once(':').map_or(bare, |(host, _)| host);
    if text.starts_with("*.") && Host::parse(&text[2..]).is_ok() {
        return misfit.hint("a wildcard can only stand in `aliases`");
    }
    if bare != text && Host::parse(bare).is_ok() {
        return misfit.hint(format!("write the host alone: `{bare}`"));
    }
    if !text.is_ascii() {
        return misfit.hint("write it in its ASCII form, which begins with `xn--`");
    }
    misfit
}

fn path(text: &str) -> Verdict {
    let Err(error) = PathPrefix::parse(text) else { return Ok(()) };
    let misfit = Misfit::new(format!("`{text}` is not a path: {error}"));
    let slashed = format!("/{text}");
    Err(if PathPrefix::parse(&slashed).is_ok() && !text.starts_with('/') {
        misfit.hint(format!("write `{slashed}`"))
    } else {
        misfit
    })
}

/// A path that may carry a query, as it stands in a request line.
fn health_path(text: &str) -> Verdict {
    if !text.starts_with('/') {
        return Err(
            Misfit::new(format!("`{text}` is not a path: it must begin with `/`")).hint(format!("write `/{text}`"))
        );
    }
    if text.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
        return Err(Misfit::new(format!("`{text}` is not a path: it has spaces, `#` or characters outside ASCII")));
    }
    Ok(())
}

/// Parses a network, or an address, which is a network of one.
pub(super) fn cidr(text: &str) -> Result<ipnet::IpNet, Misfit> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    text.parse::<ipnet::IpNet>().map(|net| net.trunc()).map_err(|_| {
        Misfit::new(format!("`{text}` is not a network"))
            .hint("write an address, or a network such as `192.168.0.0/16`")
    })
}

fn limit(text: &str) -> Verdict {
    match units::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err(Misfit::new("this limit cannot be zero")),
        Ok(_) => Ok(()),
        Err(error) => Err(Misfit::new(error.to_string())),
    }
}

/// Go's durations, as compose has them: `1m30s`.
fn compose_duration(text: &str) -> Verdict {
    let misfit = || Misfit::new(format!("`{text}` is not a duration of compose")).hint("such as `30s` or `1m30s`");
    let mut rest = text;
    if rest.is_empty() {
        return Err(misfit());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let unit = ["us", "ms", "s", "m", "h"].into_iter().find_map(|name| unit.strip_prefix(name));
        match unit {
            Some(after) if number.parse::<u32>().is_ok() => rest = after,
            _ => return Err(misfit()),
        }
    }
    Ok(())
}

fn htpasswd(text: &str) -> Verdict {
    // The line itself is never repeated: it is a secret.
    BasicUser::parse(text).map(drop).map_err(|error| {
        Misfit::new(format!("this is not an htpasswd line: {error}")).hint("make one with `htpasswd -nB NAME`")
    })
}

/// Headers that frame a message or belong to one connection; editing them would break HTTP.
const UNTOUCHABLE: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

fn header_name(text: &str) -> Verdict {
    let name = http::HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Misfit::new(format!("`{text}` is not the name of a header")))?;
    if UNTOUCHABLE.contains(&name.as_str()) {
        return Err(Misfit::new(format!("the header `{name}` belongs to the connection and cannot be edited")));
    }
    Ok(())
}

fn header_value(text: &str) -> Verdict {
    http::HeaderValue::from_str(text).map(drop).map_err(|_| {
        Misfit::new("this is not the value of a header: it has line ends, control or non-ASCII characters")
    })
}

fn hsts(text: &str) -> Verdict {
    header_value(text)?;
    let max_age = text.split(';').find_map(|directive| directive.trim().strip_prefix("max-age="));
    match max_age {
        Some(seconds) if !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(Misfit::new("this is no Strict-Transport-Security value: it needs `max-age=SECONDS`")
            .hint("write `true` for one year")),
    }
}

/// A name that can be a folder's and leave it nowhere.
fn name(text: &str) -> Verdict {
    no_nul(text)?;
    let quoted = text.escape_debug();
    if text.contains(['/', '\\']) || text == ".." {
        return Err(Misfit::new(format!("the name `{quoted}` could leave its folder"))
            .hint("use letters, digits, `.`, `_` and `-`"));
    }
    if text.starts_with(['.', '-']) {
        return Err(Misfit::new(format!("the name `{quoted}` cannot begin with `.` or `-`")));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err(Misfit::new(format!("the name `{quoted}` has control characters, or spaces around it")));
    }
    if text.len() > 200 {
        return Err(Misfit::new("a name has at most 200 bytes"));
    }
    Ok(())
}

/// A name that compose takes for a service: [a-zA-Z0-9._-].
pub(super) fn compose_service_name(text: &str) -> Verdict {
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Ok(());
    }
    Err(Misfit::new(format!("compose takes no service of the name `{}`", text.escape_debug()))
        .hint("use letters, digits, `.`, `_` and `-`"))
}

/// An address, or a DNS name (underscores allowed), of a static host.
pub(super) fn static_host(text: &str) -> Verdict {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let misfit = |cause: &str| {
        let quoted = text.escape_debug();
        Err(Misfit::new(format!("`{quoted}` is neither an address nor a DNS name: {cause}"))
            .hint("a service without `image` is a static host, and its `name` is where it is"))
    };
    let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
    if text.len() > 253 || labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        return misfit("each label has 1 to 63 characters, and the whole at most 253");
    }
    if !labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')) {
        return misfit("it has other characters than letters, digits, `-`, `_` and `.`");
    }
    if labels.last().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit())) {
        return misfit("it looks like an IPv4 address, but is not a valid one");
    }
    Ok(())
}

fn no_nul(text: &str) -> Verdict {
    if text.contains('\0') { Err(Misfit::new("a NUL character cannot stand here")) } else { Ok(()) }
}

fn image(text: &str) -> Verdict {
    if text.starts_with('-') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(
            Misfit::new(format!("`{}` is not an image", text.escape_debug())).hint("such as `traefik/whoami:v1.10`")
        );
    }
    Ok(())
}

/// A path of the project's own folder, or compose's `source:target[:mode]`.
fn volume(text: &str) -> Verdict {
    no_nul(text)?;
    if text.contains(':') {
        return Ok(());
    }
    if !text.starts_with('/') {
        return Err(Misfit::new(format!("the volume `{text}` must be an absolute path in the container"))
            .hint("write `/data`, or `source:/data`"));
    }
    if text.split('/').any(|segment| segment == "..") {
        return Err(Misfit::new(format!("the volume `{text}` could leave the project's folder")));
    }
    Ok(())
}

fn restart(text: &str) -> Verdict {
    let retries = text.strip_prefix("on-failure:");
    if matches!(text, "no" | "always" | "unless-stopped" | "on-failure")
        || retries.is_some_and(|n| n.parse::<u32>().is_ok())
    {
        return Ok(());
    }
    Err(Misfit::new(format!("`{text}` is not a restart policy"))
        .hint("one of `no`, `always`, `unless-stopped`, `on-failure` and `on-failure:3`"))
}

fn repository(text: &str) -> Verdict {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() >= 2
        && parts.iter().all(|part| !part.is_empty())
        && !text.contains(char::is_whitespace)
        && !text.contains(':')
    {
        return Ok(());
    }
    Err(Misfit::new(format!("`{text}` is not a repository")).hint("write `owner/name`"))
}

fn variable(text: &str) -> Verdict {
    if text.is_empty() || text.contains(['=', '\0']) || text.chars().any(char::is_whitespace) {
        return Err(Misfit::new(format!("`{}` is not the name of a variable", text.escape_debug())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("host", &["example.com", "a-b.c"][..], &["", "a b", "-a.com", "http://a.com", "*.a.com", "a..b"][..]),
            ("host-pattern", &["*.example.com", "a.b"], &["*", "a.*.b", "**.a"]),
            ("path", &["/", "/api", "/a/b/"], &["api", "/../x", "/a b", "/a?b", ""]),
            ("health-path", &["/", "/up?full=1"], &["up", "/a b", "/a#b", "/ü"]),
            ("cidr", &["10.0.0.0/8", "10.0.0.1", "::1", "fd00::/8"], &["10.0.0.0/33", "10.0.0", "x", ""]),
            ("duration", &["0s", "5m"], &["5", "m"]),
            ("limit", &["5m"], &["0s", "5"]),
            ("compose-duration", &["30s", "1m30s", "500ms"], &["", "30", "s", "1m30"]),
            ("size", &["10MB"], &["10", "10mb"]),
            ("htpasswd", &["u:$2y$05$abcdefghijklmnopqrstuuO4zVbRh6eYyjBPZ1nD0k1X8e4Zb5h5K"], &["u", ":x", ""]),
            ("header-name", &["X-Frame-Options"], &["", "a b", "Content-Length", "Transfer-Encoding"]),
            ("header-value", &["nosniff", ""], &["a\nb", "a\0"]),
            ("hsts", &["max-age=1; preload"], &["", "1y", "max-age=", "max-age=x"]),
            (
                "name",
                &["itsUP", "home-assistant", "192.168.1.1", "a.b", "my project"],
                &["..", "a/b", ".a", "a\0", "a\\b", "-x", " a", "a\nb"],
            ),
            ("image", &["a/b:c", "127.0.0.1:1/x:tag"], &["a b", "-x", "a\n"]),
            ("volume", &["/data", "./a:/b", "v:/b:ro"], &["data", "/../etc", "/a/../b", "/a\0"]),
            ("restart", &["no", "always", "on-failure:3"], &["never", "", "on-failure:x"]),
            ("repository", &["a/b", "group/sub/name"], &["a", "https://github.com/a/b", "/b"]),
            ("variable", &["A", "a.b"], &["", "A=B", "A B"]),
            ("assignment", &["A=B=C", "A="], &["=x", "A B=c"]),
        ] {
            for text in good {
                assert_eq!(check(format, text), Ok(()), "{format} {text:?}");
            }
            for text in bad {
                assert!(check(format, text).is_err(), "{format} {text:?}");
            }
        }
    }

    #[test]
    fn static_hosts() {
        for text in ["192.168.1.111", "::1", "fd00::1", "nas", "host.docker.internal", "my_box.lan", "nas.lan."] {
            assert_eq!(static_host(text), Ok(()), "{text}");
        }
        for text in ["192.168.1.300", "10.0.0.1:80", "a b", "", "nas..lan", "http://nas", "1"] {
            assert!(static_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hints_say_what_to_write() {
        let hint = |format, text| check(format, text).unwrap_err().hint;
        assert_eq!(hint("host", "https://a.com/x").as_deref(), Some("write the host alone: `a.com`"));
        assert_eq!(hint("host", "a.com:443").as_deref(), Some("write the host alone: `a.com`"));
        assert_eq!(hint("path", "api").as_deref(), Some("write `/api`"));
        assert_eq!(hint("host", "*.a.com").as_deref(), Some("a wildcard can only stand in `aliases`"));
    }

    #[test]
    fn secrets_are_never_repeated() {
        assert!(!check("htpasswd", "bob-hunter2").unwrap_err().message.contains("hunter2"));
    }
}
