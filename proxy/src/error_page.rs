//! Error pages: what a client is shown when the proxy itself answers.
//!
//! Pure; knows nothing of requests but their status, what they accept and their id.

use bytes::Bytes;

/// A page to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Bytes,
}

/// The kinds of page there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Html,
    Json,
    Text,
}

/// Makes the page for a status, in the kind that the `Accept` field's value likes best: HTML, JSON, or text where it does not care.
pub fn render(status: u16, accept: Option<&[u8]>, request_id: &str) -> Page {
    let (title, sentence) = wording(status);
    match kind(accept) {
        Kind::Html => {
            Page { content_type: "text/html; charset=utf-8", body: html(status, title, sentence, request_id) }
        }
        Kind::Json => {
            let id = escape_json(request_id);
            let body = format!(
                "{{\"status\":{status},\"error\":\"{title}\",\"message\":\"{sentence}\",\"request_id\":\"{id}\"}}\n"
            );
            Page { content_type: "application/json", body: body.into() }
        }
        Kind::Text => {
            let id: String = request_id.chars().filter(|c| !c.is_control()).collect();
            let body = format!("{status} {title}\n\n{sentence}\n\nRequest id: {id}\n");
            Page { content_type: "text/plain; charset=utf-8", body: body.into() }
        }
    }
}

/// A title and a sentence for people. Neither has a character that HTML or JSON would want escaped.
fn wording(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("Bad request", "The request could not be understood."),
        401 => ("Sign in", "A user name and a password are needed here."),
        403 => ("Not allowed", "This address may not be reached from where you are."),
        404 => ("Not found", "There is nothing at this address."),
        405 => ("Method not allowed", "This kind of request is not answered here."),
        408 => ("Too slow", "The request took too long to arrive."),
        413 => ("Too large", "The upload is larger than is accepted here."),
        414 => ("Address too long", "The address of the request is too long."),
        421 => ("Misdirected request", "This connection is not meant for that host. A new connection will do."),
        429 => ("Too many requests", "Too much was asked for in a short time. Please wait a little."),
        431 => ("Headers too large", "The header of the request is too large, perhaps because of its cookies."),
        500 => ("Internal error", "Something went wrong on our side."),
        502 => ("Bad gateway", "The application behind this address gave no usable answer."),
        503 => (
            "Unavailable for now",
            "The application behind this address is not there at the moment. Please try again soon.",
        ),
        504 => ("Gateway timeout", "The application behind this address took too long to answer."),
        505 => ("HTTP version not supported", "This version of HTTP is not spoken here."),
        status if status / 100 == 4 => ("Request refused", "The request cannot be answered as it is."),
        _ => ("Error", "Something went wrong."),
    }
}

/// Weighs an `Accept` field (RFC 9110, section 12.5.1). What stands first wins among equals.
fn kind(accept: Option<&[u8]>) -> Kind {
    let mut best = (Kind::Text, 0);
    let ranges = accept.unwrap_or_default().split(|&byte| byte == b',');
    for range in ranges.take(32) {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        let is = |known: &[u8]| media.eq_ignore_ascii_case(known);
        let found = if is(b"text/html") || is(b"application/xhtml+xml") {
            Kind::Html
        } else if is(b"application/json") || is(b"application/*") || media.to_ascii_lowercase().ends_with(b"+json") {
            Kind::Json
        } else if is(b"text/plain") || is(b"text/*") || is(b"*/*") {
            Kind::Text
        } else {
            continue;
        };
        let weight =
            parts.find_map(|part| part.strip_prefix(b"q=").or(part.strip_prefix(b"Q="))).map_or(1000, thousandths);
        if weight > best.1 {
            best = (found, weight);
        }
    }
    best.0
}

/// `0.8` as 800; what is no weight counts nothing.
fn thousandths(weight: &[u8]) -> u16 {
    let text = std::str::from_utf8(weight).unwrap_or_default();
    match text.parse::<f32>() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u16,
        _ => 0,
    }
}

fn html(status: u16, title: &str, sentence: &str, request_id: &str) -> Bytes {
    let id = escape_html(request_id);
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{status} {title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ margin: 0; min-height: 100vh; display: grid; place-content: center; padding: 2rem; box-sizing: border-box;
  font: 1rem/1.5 system-ui, sans-serif; background: light-dark(#fafaf8, #16181c); color: light-dark(#23262b, #d9dce1) }}
main {{ max-width: 30rem }}
p.status {{ margin: 0; font-size: 4rem; line-height: 1; font-weight: 700; color: light-dark(#c2410c, #fb923c) }}
h1 {{ margin: .75rem 0 .25rem; font-size: 1.5rem }}
p {{ margin: 0 }}
footer {{ margin-top: 2rem; font-size: .8rem; opacity: .65; overflow-wrap: anywhere }}
</style>
<main>
<p class="status">{status}</p>
<h1>{title}</h1>
<p>{sentence}</p>
<footer>Request id: <code>{id}</code></footer>
</main>
</html>
"#
    )
    .into()
}

/// Escapes text for HTML, in elements and in quoted attributes.
pub(crate) fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn escape_json(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUSES: [u16; 16] = [400, 401, 403, 404, 405, 408, 413, 414, 421, 429, 431, 500, 502, 503, 504, 505];

    fn body(status: u16, accept: &str, id: &str) -> String {
        String::from_utf8(render(status, Some(accept.as_bytes()), id).body.to_vec()).unwrap()
    }

    #[test]
    fn the_client_chooses_the_kind() {
        for (accept, want) in [
            (None, Kind::Text),
            (Some(""), Kind::Text),
            (Some("*/*"), Kind::Text),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"), Kind::Html),
            (Some("application/json"), Kind::Json),
            (Some("application/json, text/plain, */*"), Kind::Json),
            (Some("application/problem+JSON"), Kind::Json),
            (Some("text/html;q=0.5, application/json;q=0.9"), Kind::Json),
            (Some("text/html; charset=x; q=0.9, application/json;q=0.5"), Kind::Html),
            (Some("TEXT/HTML"), Kind::Html),
            (Some("text/html;q=0"), Kind::Text),
            (Some("text/html;q=2"), Kind::Text),
            (Some("text/html;q=NaN"), Kind::Text),
            (Some("image/png"), Kind::Text),
            (Some(",;,"), Kind::Text),
        ] {
            assert_eq!(kind(accept.map(str::as_bytes)), want, "{accept:?}");
        }
        assert_eq!(kind(Some(b"\xff")), Kind::Text);
    }

    #[test]
    fn every_status_has_its_own_words() {
        let mut seen = std::collections::HashSet::new();
        for status in STATUSES {
            let (title, sentence) = wording(status);
            assert!(seen.insert(title) && seen.insert(sentence), "{status}");
            assert!(!format!("{title}{sentence}").contains(['<', '>', '&', '"', '\\', '\'']), "{status}");
            for accept in ["text/html", "application/json", "text/plain"] {
                let page = body(status, accept, "id-1");
                for part in [&status.to_string(), title, sentence, "id-1"] {
                    assert!(page.contains(part), "{part} in {page}");
                }
            }
        }
        assert!(body(418, "text/plain", "x").contains("Request refused"));
        assert!(body(599, "text/plain", "x").contains("Error"));
    }

    #[test]
    fn pages_load_nothing_and_are_small() {
        let page = body(503, "text/html", "x");
        assert!(page.len() < 2048, "{}", page.len());
        for load in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(load), "{load}");
        }
    }

    #[test]
    fn ids_are_escaped() {
        let id = "<script>'\"\\\n&";
        assert!(body(500, "text/html", id).contains("&lt;script&gt;&#39;&quot;\\\n&amp;"));
        assert!(body(500, "application/json", id).contains(r#""request_id":"<script>'\"\\\u000a&""#));
        assert!(body(500, "text/plain", id).ends_with("Request id: <script>'\"\\&\n"));
    }

    proptest! {
        #[test]
        fn never_panics(status: u16, accept in prop::collection::vec(any::<u8>(), 0..60), id in ".{0,20}") {
            let page = render(status, Some(&accept), &id);
            prop_assert!(std::str::from_utf8(&page.body).is_ok());
        }
    }
}
