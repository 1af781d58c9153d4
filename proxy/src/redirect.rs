//! Where a redirect points.

use std::fmt::Write;

/// The https URL of a host and target; the port is left out where it is the scheme's own.
pub(crate) fn https_url(host: &str, port: u16, target: &str) -> String {
    let mut url = String::with_capacity(host.len() + target.len() + 16);
    url.push_str("https://");
    url.push_str(host);
    if port != 443 {
        let _ = write!(url, ":{port}");
    }
    url.push_str(target);
    url
}

#[cfg(test)]
mod tests {
    use super::https_url;

    #[test]
    fn the_port_shows_only_where_it_must() {
        assert_eq!(https_url("a.test", 443, "/x?y=1"), "https://a.test/x?y=1");
        assert_eq!(https_url("a.test", 8443, "/"), "https://a.test:8443/");
    }
}
