//! itsUP's own welcome page, for a host that has nothing behind it yet.
//!
//! Pure; knows nothing but the host's name.

use crate::error_page::{Page, escape_html};

/// Makes the welcome page of a host. It loads nothing from elsewhere.
pub fn render(host: &str) -> Page {
    Page { content_type: "text/html; charset=utf-8", body: TEMPLATE.replace("{host}", &escape_html(host)).into() }
}

const TEMPLATE: &str = r##"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>It's up: {host}</title>
<style>
:root { color-scheme: light dark; --ink: #23262b; --paper: #fafaf8; --card: #fff; --line: #e4e2dc; --up: #15803d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d9dce1; --paper: #16181c; --card: #1e2126; --line: #31353c; --up: #4ade80 }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-content: center; padding: 2rem 1.25rem;
  font: 1rem/1.6 system-ui, sans-serif; background: var(--paper); color: var(--ink) }
main { max-width: 38rem }
svg { width: 4.5rem; height: 4.5rem; color: var(--up) }
h1 { margin: .5rem 0 0; font-size: 2.25rem; line-height: 1.2 }
h1 + p { margin: .25rem 0 2rem; font-size: 1.1rem; overflow-wrap: anywhere }
h2 { margin: 0 0 .5rem; font-size: 1.1rem }
ol { margin: 0; padding-left: 1.25rem }
li + li { margin-top: .75rem }
section { padding: 1.25rem 1.5rem; background: var(--card); border: 1px solid var(--line); border-radius: .75rem }
code, pre { font: .875rem/1.5 ui-monospace, monospace }
pre { margin: .5rem 0 0; padding: .75rem 1rem; overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: .5rem }
footer { margin-top: 1.5rem; font-size: .85rem; opacity: .7 }
</style>
<main>
<svg viewBox="0 0 48 48" fill="none" stroke="currentColor" stroke-width="4" stroke-linecap="round" stroke-linejoin="round" role="img" aria-label="An arrow that points up"><circle cx="24" cy="24" r="21"/><path d="M24 34V15M15 23l9-9 9 9"/></svg>
<h1>It's up.</h1>
<p>itsUP answers for <strong>{host}</strong>. Nothing is behind it yet.</p>
<section>
<h2>What to do next</h2>
<ol>
<li>Open <code>db.yml</code> and give the project a service, for example one that runs on your network:
<pre>projects:
  - name: my-project
    domain: {host}
    services:
      - name: 192.168.1.10
        port: 8080</pre></li>
<li>Check it with <code>itsup validate</code>.</li>
<li>Switch over with <code>itsup reload</code>. No request is lost meanwhile.</li>
</ol>
</section>
<footer>This page is built in. It goes away as soon as the project has a service.</footer>
</main>
</html>
"##;

#[cfg(test)]
mod tests {
    use super::*;

    fn body(host: &str) -> String {
        String::from_utf8(render(host).body.to_vec()).unwrap()
    }

    #[test]
    fn shows_the_host_and_what_to_do() {
        let page = body("hello.localhost");
        for part in ["It's up", "<strong>hello.localhost</strong>", "domain: hello.localhost", "db.yml", "itsup reload"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("{host}"));
    }

    #[test]
    fn loads_nothing_and_escapes_the_host() {
        let page = body("<script>\"&");
        assert!(page.contains("&lt;script&gt;&quot;&amp;") && !page.contains("<script"));
        for load in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(load), "{load}");
        }
    }
}
