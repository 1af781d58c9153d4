//! The page at `/docs`: the OpenAPI description as HTML, without scripts and without anything from elsewhere. Pure.

use std::fmt::Write as _;

use serde_json::Value;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8883; --soft: #8881; --get: #2a7d4f; --post: #2563c4; --patch: #9a6700; --delete: #c02c38 }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; display: grid; grid-template-columns: 17rem minmax(0, 1fr) }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem; border-right: 1px solid var(--line); font-size: .86rem }
nav b { display: block; margin: 1rem 0 .2rem; text-transform: capitalize } nav a { display: block; padding: .1rem 0; color: inherit; text-decoration: none }
nav a:hover { text-decoration: underline }
main { max-width: 60rem; padding: 1.5rem 2.5rem 6rem } h1 { margin: 0 } h2 { margin: 3rem 0 .3rem; text-transform: capitalize }
section { margin: 1rem 0; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem }
section h3 { margin: 0; font: 600 1rem ui-monospace, monospace; overflow-wrap: anywhere }
.method { display: inline-block; min-width: 4.2rem; margin-right: .6rem; padding: .1rem .4rem; border-radius: .3rem; color: #fff; text-align: center; font-size: .8rem }
.get { background: var(--get) } .post { background: var(--post) } .patch { background: var(--patch) } .delete { background: var(--delete) }
.public { float: right; font: .78rem system-ui; opacity: .7 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .9rem } th { text-align: left; font-weight: 600 }
td, th { padding: .25rem .8rem .25rem 0; vertical-align: top; border-bottom: 1px solid var(--line) } tr:last-child td { border-bottom: 0 }
code, pre { font-family: ui-monospace, monospace; font-size: .86em } code { background: var(--soft); padding: .05rem .25rem; border-radius: .25rem }
pre { background: var(--soft); padding: .7rem .9rem; border-radius: .4rem; overflow: auto; margin: .6rem 0 } pre code { background: none; padding: 0 }
p { margin: .5rem 0 } .soft { opacity: .7 }
@media (max-width: 50rem) { body { display: block } nav { position: static; height: auto; border: 0 } main { padding: 1rem } }
";

/// The page.
pub(super) fn html(openapi: &Value) -> String {
    let info = &openapi["info"];
    let title = text(&info["title"]);
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title} API</title><style>{STYLE}</style><nav><strong>{title} API</strong>"
    );
    let tags: Vec<&Value> = openapi["tags"].as_array().into_iter().flatten().collect();
    for tag in &tags {
        let _ = write!(page, "<b>{}</b>", text(&tag["name"]));
        for (_, _, operation) in operations(openapi, tag) {
            let id = text(&operation["operationId"]);
            let _ = write!(page, "<a href=\"#{id}\">{}</a>", summary(operation));
        }
    }
    let _ = write!(page, "<b>Data</b>");
    let schemas = openapi["components"]["schemas"].as_object();
    for name in schemas.into_iter().flatten().map(|(name, _)| escape(name)) {
        let _ = write!(page, "<a href=\"#schema-{name}\">{name}</a>");
    }
    let _ = write!(page, "</nav><main><h1>{title} <span class=\"soft\">{}</span></h1>", text(&info["version"]));
    paragraphs(&mut page, &info["description"]);
    page.push_str(
        "<p>Send <code>Authorization: Bearer API_KEY</code> with everything that is not marked public. \
         The same as a file: <a href=\"/openapi.json\">openapi.json</a>.</p>",
    );
    for tag in &tags {
        let _ = write!(page, "<h2>{}</h2><p class=\"soft\">{}</p>", text(&tag["name"]), text(&tag["description"]));
        for (path, method, operation) in operations(openapi, tag) {
            section(&mut page, path, method, operation);
        }
    }
    page.push_str("<h2>Data</h2>");
    for (name, schema) in schemas.into_iter().flatten() {
        self::schema(&mut page, name, schema);
    }
    page.push_str("</main></html>\n");
    page
}

fn operations<'o>(openapi: &'o Value, tag: &Value) -> Vec<(&'o str, &'o str, &'o Value)> {
    let paths = openapi["paths"].as_object();
    let all = paths.into_iter().flatten().flat_map(|(path, methods)| {
        methods
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    all.filter(|(.., operation)| operation["tags"][0] == tag["name"]).collect()
}

fn section(page: &mut String, path: &str, method: &str, operation: &Value) {
    let id = text(&operation["operationId"]);
    let public = operation["security"][0].as_object().is_some_and(serde_json::Map::is_empty);
    let public = if public { "<span class=\"public\">public</span>" } else { "" };
    let _ = write!(
        page,
        "<section id=\"{id}\">{public}<h3><span class=\"method {method}\">{}</span>{}</h3><p>{}</p>",
        method.to_uppercase(),
        escape(path),
        summary(operation),
    );
    paragraphs(page, &operation["description"]);
    let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
    if !parameters.is_empty() {
        page.push_str("<table><tr><th>Parameter<th>In<th>What it is");
        for parameter in parameters {
            let needed = if parameter["required"] == true { "" } else { " <span class=\"soft\">(optional)</span>" };
            let _ = write!(
                page,
                "<tr><td><code>{}</code><td>{}<td>{}{needed}",
                text(&parameter["name"]),
                text(&parameter["in"]),
                text(&parameter["description"]),
            );
        }
        page.push_str("</table>");
    }
    let body = operation["requestBody"]["content"].as_object().and_then(|content| content.values().next());
    if let Some(body) = body {
        let what = text(&operation["requestBody"]["description"]);
        let _ = write!(page, "<p>Body: {} {what}</p>", kind(&body["schema"]));
    }
    page.push_str("<table><tr><th>Answer<th>When<th>With");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let content = response["content"].as_object().and_then(|content| content.iter().next());
        let with = content.map(|(_, content)| kind(&content["schema"])).unwrap_or_default();
        let _ = write!(page, "<tr><td><code>{}</code><td>{}<td>{with}", escape(status), text(&response["description"]));
    }
    page.push_str("</table>");
    let key = if public.is_empty() { " -H \"Authorization: Bearer $API_KEY\"" } else { "" };
    let send = if body.is_some() { " -d @body.json" } else { "" };
    let how = if method == "get" { String::new() } else { format!(" -X {}", method.to_uppercase()) };
    let _ = write!(page, "<pre><code>curl{how}{key}{send} \"$ITSUP{}\"</code></pre></section>", escape(path));
}

fn schema(page: &mut String, name: &str, schema: &Value) {
    let name = escape(name);
    let _ = write!(page, "<section id=\"schema-{name}\"><h3>{name}</h3>");
    paragraphs(page, &schema["description"]);
    let variants = ["oneOf", "anyOf"].iter().find_map(|key| schema[*key].as_array());
    if let Some(variants) = variants {
        for variant in variants {
            paragraphs(page, &variant["description"]);
            properties(page, variant);
        }
    } else if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|value| format!("<code>{}</code>", text(value))).collect();
        let _ = write!(page, "<p>One of {}</p>", values.join(", "));
    } else {
        properties(page, schema);
        for part in schema["allOf"].as_array().into_iter().flatten() {
            if part.get("$ref").is_some() {
                let _ = write!(page, "<p>All of {}</p>", kind(part));
            }
            properties(page, part);
        }
    }
    page.push_str("</section>");
}

fn properties(page: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    page.push_str("<table><tr><th>Key<th>Type<th>What it is");
    for (key, property) in properties {
        let needed = schema["required"].as_array().is_some_and(|all| all.iter().any(|name| *name == **key));
        let needed = if needed { "" } else { " <span class=\"soft\">(optional)</span>" };
        let _ = write!(
            page,
            "<tr><td><code>{}</code>{needed}<td>{}<td>{}",
            escape(key),
            kind(property),
            text(&property["description"])
        );
    }
    page.push_str("</table>");
}

/// What a schema is, in a few words, with links.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        let name = escape(name);
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("<code>{}</code>", text(value))).collect::<Vec<_>>().join(" or ");
    }
    if let Some(variants) = ["oneOf", "anyOf"].iter().find_map(|key| schema[*key].as_array()) {
        let kinds: Vec<String> = variants.iter().filter(|variant| variant["type"] != "null").map(kind).collect();
        return kinds.join(" or ");
    }
    let name = match &schema["type"] {
        Value::Array(types) => {
            types.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect::<Vec<_>>().join(" or ")
        }
        name => name.as_str().unwrap_or("any").to_owned(),
    };
    match (name.as_str(), schema.get("items")) {
        ("array", Some(items)) => format!("list of {}", kind(items)),
        _ => escape(&name),
    }
}

fn summary(operation: &Value) -> String {
    let summary = text(&operation["summary"]);
    summary.trim_end_matches('.').to_owned()
}

/// Blank lines part paragraphs; backticks mark code.
fn paragraphs(page: &mut String, value: &Value) {
    for paragraph in value.as_str().unwrap_or_default().split("\n\n").filter(|text| !text.trim().is_empty()) {
        let _ = write!(page, "<p>{}</p>", text(&paragraph.into()));
    }
}

/// A text as HTML, with `code` in it.
fn text(value: &Value) -> String {
    let plain = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut html = String::new();
    for (index, part) in escape(&plain).split('`').enumerate() {
        match index % 2 {
            0 => html.push_str(part),
            _ => {
                let _ = write!(html, "<code>{part}</code>");
            }
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
