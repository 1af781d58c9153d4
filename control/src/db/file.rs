//! db.yml as it is written: the serde mirror of the file, and the one list of its keys.
//!
//! The JSON Schema is derived from these types, and the structure of the file is checked against that
//! schema, so a key is added here and nowhere else. What the values mean is for others. Descriptions are
//! what editors show.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// itsUP's db.yml: projects, their services, and the hosts that lead to them.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields, title = "itsUP db.yml", extend("patternProperties" = {"^x-": {}}))]
pub(super) struct File {
    /// The projects, in any order.
    pub(super) projects: Vec<Project>,
    /// Of the old tool; has no effect.
    #[schemars(extend("deprecated" = true))]
    pub(super) plugins: Option<Anything>,
    /// Of the old tool; has no effect.
    #[schemars(extend("deprecated" = true))]
    pub(super) versions: Option<Anything>,
}

/// A set of services and the hosts that lead to them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Project {
    /// Unique. The project's folder is `upstream/<name>`, its compose project the same name in lower case.
    pub(super) name: Name,
    /// For people; shown in tables.
    pub(super) description: Option<String>,
    /// `false` takes the project out of service: no routes, no stack.
    pub(super) enabled: Option<Flag>,
    /// The host that leads to this project. With no services behind it, itsUP's welcome page answers.
    pub(super) domain: Option<HostText>,
    /// Further hosts that do what `domain` does; exact, or `*.` and one label.
    pub(super) aliases: Option<Vec<HostPatternText>>,
    /// Hosts that redirect to `domain`.
    pub(super) redirect_from: Option<Vec<HostText>>,
    /// The service (with an image) that `domain` leads to.
    pub(super) entrypoint: Option<String>,
    /// Paths that lead to services; the longest that matches wins, and the rest goes to `entrypoint`.
    pub(super) routes: Option<Vec<Route>>,
    /// Where the certificate comes from, unless from `certs/<domain>/` or a CA.
    pub(super) tls: Option<Tls>,
    /// Who may come in.
    pub(super) access: Option<Access>,
    /// Edits of the response headers.
    pub(super) headers: Option<Headers>,
    /// The Strict-Transport-Security header: `true`, or its value.
    pub(super) hsts: Option<Hsts>,
    /// Compress responses (gzip, br, zstd). Off by default.
    pub(super) compress: Option<Flag>,
    /// The services.
    pub(super) services: Option<Vec<Service>>,
    /// Commands run once, in a container of the new image, before a rollout (migrations); one that fails stops it.
    pub(super) before: Option<Vec<Text>>,
    /// Whose deliveries to `/hook` may deploy this project.
    pub(super) webhook: Option<Webhook>,
}

/// A path and the service it leads to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Matches whole segments: `/api` matches `/api` and `/api/x`, never `/apix`.
    pub(super) path: PathText,
    /// The service's name.
    pub(super) service: Text,
    /// Take the path off before the request is forwarded. Off by default.
    pub(super) strip: Option<Flag>,
}

/// Where a certificate comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Tls {
    /// `internal`: always the internal CA.
    Internal(InternalTls),
    /// The user's own files.
    Files(TlsFiles),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum InternalTls {
    Internal,
}

/// A certificate of your own; never written by itsUP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFiles {
    /// The certificate chain, PEM, relative to the root.
    pub(super) cert: FileText,
    /// Its private key, PEM, relative to the root.
    pub(super) key: FileText,
}

/// Who may come in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Access {
    /// Client networks that are let in, such as `192.168.0.0/16`. None: all.
    pub(super) allow: Option<Vec<CidrText>>,
    /// Users, as htpasswd writes them: `name:hash`. None: no password is asked for.
    pub(super) basic: Option<Vec<HtpasswdText>>,
}

/// Edits of the response headers; `remove` first, then `set`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Headers {
    /// Headers to set, replacing what was there.
    pub(super) set: Option<HeaderValues>,
    /// Headers to remove.
    pub(super) remove: Option<Vec<HeaderNameText>>,
}

/// A webhook's secret, and what its deliveries must be about.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Webhook {
    /// The secret its deliveries are signed with; else WEBHOOK_SECRET.
    pub(super) secret: Option<Text>,
    /// `owner/name`: deliveries of other repositories are refused.
    pub(super) repository: Option<RepositoryText>,
    /// Deliveries of other branches are refused.
    pub(super) branch: Option<Text>,
}

/// Containers of a compose stack, or a static host.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    /// Unique in the project; without `image`, the address or DNS name of a static host.
    pub(super) name: Name,
    /// The container image. Without one, this is a static host at `name:port`.
    pub(super) image: Option<ImageText>,
    /// Where it listens. 8080 by default.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Option<u16>,
    /// TLS of the host that leads here goes through untouched. Off by default.
    pub(super) passthrough: Option<Flag>,
    /// A host that leads to this service.
    pub(super) domain: Option<HostText>,
    /// Environment variables: a mapping, or a list of `NAME=value`.
    pub(super) env: Option<Env>,
    /// Files of further environment variables, relative to the project's folder.
    pub(super) env_file: Option<OneOrMany>,
    /// Volumes: `/path` is kept in the project's folder; anything else is compose's own syntax.
    pub(super) volumes: Option<Vec<VolumeText>>,
    /// The command to run, as text or as a list of words.
    pub(super) command: Option<OneOrMany>,
    /// The restart policy. `unless-stopped` by default.
    pub(super) restart: Option<RestartText>,
    /// Services that are started first: a list, or compose's mapping with conditions.
    pub(super) depends_on: Option<DependsOn>,
    /// Labels: a list of `name=value`, or a mapping.
    pub(super) labels: Option<Env>,
    /// Containers to run. 1 by default.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) replicas: Option<u32>,
    /// The PROXY protocol header that is sent to it. None by default.
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Where a passthrough host's HTTP-01 challenges go. 80 by default.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) challenge_port: Option<u16>,
    /// How it is probed.
    pub(super) health: Option<Health>,
    /// Time limits of the proxy.
    pub(super) timeouts: Option<Timeouts>,
    /// The largest request body; more is answered 413. Unlimited by default.
    pub(super) max_body: Option<SizeText>,
    /// How HTTP is spoken to it. `h1` by default.
    pub(super) http: Option<Http>,
    /// How its certificate is checked where `http` is `https`: `false` for not at all, or a CA file.
    pub(super) verify: Option<Verify>,
    /// How it is changed over to a new version.
    pub(super) rollout: Option<Rollout>,
    /// Compose's healthcheck.
    pub(super) healthcheck: Option<Healthcheck>,
    /// Merged into the generated compose service as it stands.
    pub(super) compose: Option<Object>,
    /// The old tool's name for `compose`.
    pub(super) additional_properties: Option<Object>,
    /// Of the old tool; it is called `proxy_protocol` now.
    #[schemars(extend("deprecated" = true))]
    pub(super) proxyprotocol: Option<OldProxyProtocol>,
    /// Of the old tool; has no effect.
    #[schemars(extend("deprecated" = true))]
    pub(super) protocol: Option<Anything>,
    /// Of the old tool; has no effect: every service that `entrypoint` or `routes` name is rolled over.
    #[schemars(extend("deprecated" = true))]
    pub(super) stateless: Option<Anything>,
    /// Of the old tool; has no effect.
    #[schemars(extend("deprecated" = true))]
    pub(super) project: Option<Anything>,
}

/// How a service is probed, during a rollout and while it is set aside.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    /// The path that must answer 2xx or 3xx.
    pub(super) path: HealthPathText,
    /// Time between probes. 10s by default.
    pub(super) interval: Option<LimitText>,
    /// How long one probe may take. 5s by default.
    pub(super) timeout: Option<LimitText>,
}

/// Time limits of the proxy.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// How long opening a connection may take. 5s by default.
    pub(super) connect: Option<LimitText>,
    /// How long the response's header may take. Unlimited by default.
    pub(super) response: Option<LimitText>,
    /// How long a connection may be silent.
    pub(super) idle: Option<LimitText>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum ProxyProtocol {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Http {
    H1,
    H2c,
    Https,
}

/// How a service is changed over to a new version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollout {
    /// How long the new containers may take to be ready. 60s by default.
    pub(super) timeout: Option<LimitText>,
    /// How long requests may take to end on the old ones. 30s by default.
    pub(super) drain: Option<DurationText>,
    /// The same for websockets, event streams and passthrough. 5m by default.
    pub(super) stream_drain: Option<DurationText>,
    /// How long the new ones are watched before the old ones are removed. 10s by default.
    pub(super) watch: Option<DurationText>,
    /// `rolling` starts the new beside the old; `recreate` holds requests while it restarts in place.
    pub(super) strategy: Option<Strategy>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Strategy {
    Rolling,
    Recreate,
}

/// Compose's healthcheck.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Healthcheck {
    /// The command: text, or a list that begins with `CMD`, `CMD-SHELL` or `NONE`.
    pub(super) test: Option<OneOrMany>,
    /// Time between probes, such as `30s` or `1m30s`.
    pub(super) interval: Option<ComposeDurationText>,
    /// How long one probe may take.
    pub(super) timeout: Option<ComposeDurationText>,
    /// Probes that must fail in a row.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) retries: Option<u32>,
    /// How long failures at the start do not count.
    pub(super) start_period: Option<ComposeDurationText>,
    /// Time between probes during the start period.
    pub(super) start_interval: Option<ComposeDurationText>,
    /// Turns the image's own healthcheck off.
    pub(super) disable: Option<Flag>,
}

/// `true` or `false`; YAML 1.1's `yes`, `no`, `on` and `off` as well, with a warning elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub(super) bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bool(bool),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Bool(value) => Ok(Self(value)),
            Either::Text(text) => super::resolve::py_bool(&text)
                .map(Self)
                .ok_or_else(|| serde::de::Error::custom(format_args!("`{text}` is neither true nor false"))),
        }
    }
}

impl JsonSchema for Flag {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Flag".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "boolean"})
    }
}

/// A text of which the schema names the format; [`super::formats`] checks it.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $schema:tt,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(transparent)]
        pub(super) struct $name(pub(super) String);

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

texts! {
    /// Any text but the empty one.
    Text: {"type": "string", "minLength": 1},
    /// A name that can be a folder's.
    Name: {"type": "string", "minLength": 1, "format": "name"},
    HostText: {"type": "string", "format": "host"},
    HostPatternText: {"type": "string", "format": "host-pattern"},
    PathText: {"type": "string", "format": "path", "pattern": "^/"},
    HealthPathText: {"type": "string", "format": "health-path", "pattern": "^/"},
    FileText: {"type": "string", "minLength": 1, "format": "file"},
    CidrText: {"type": "string", "format": "cidr"},
    HtpasswdText: {"type": "string", "format": "htpasswd"},
    HeaderNameText: {"type": "string", "format": "header-name"},
    RepositoryText: {"type": "string", "format": "repository", "pattern": "/"},
    ImageText: {"type": "string", "minLength": 1, "format": "image"},
    VolumeText: {"type": "string", "minLength": 1, "format": "volume"},
    RestartText: {"type": "string", "format": "restart", "pattern": "^(no|always|unless-stopped|on-failure(:[0-9]+)?)$"},
    /// A duration that may be zero.
    DurationText: {"type": "string", "format": "duration", "pattern": "^[0-9]+(ms|s|m|h|d)$"},
    /// A duration that may not be zero.
    LimitText: {"type": "string", "format": "limit", "pattern": "^[0-9]+(ms|s|m|h|d)$"},
    ComposeDurationText: {"type": "string", "format": "compose-duration", "pattern": "^([0-9]+(us|ms|s|m|h))+$"},
    SizeText: {"type": "string", "format": "size", "pattern": "^[0-9]+(B|KB|MB|GB)$"},
}

/// A part of the file that is taken from the document itself, so that its scalars stay as they are written.
macro_rules! verbatim {
    ($($(#[$doc:meta])* $name:ident: $schema:tt,)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(from = "serde::de::IgnoredAny")]
        pub(super) struct $name;

        impl From<serde::de::IgnoredAny> for $name {
            fn from(_: serde::de::IgnoredAny) -> Self {
                Self
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

verbatim! {
    /// Anything at all.
    Anything: {},
    /// Any mapping.
    Object: {"type": "object"},
    /// Names and values: a mapping, or a list of `NAME=value`.
    Env: {
        "anyOf": [
            {
                "type": "object",
                "propertyNames": {"format": "variable"},
                "additionalProperties": {"type": ["string", "number", "boolean", "null"], "format": "no-nul"},
            },
            {"type": "array", "items": {"type": "string", "format": "assignment"}},
        ],
    },
    /// Names and values of headers.
    HeaderValues: {
        "type": "object",
        "propertyNames": {"format": "header-name"},
        "additionalProperties": {"type": ["string", "number", "boolean"], "format": "header-value"},
    },
    /// One text, or a list of them.
    OneOrMany: {
        "anyOf": [
            {"type": "string", "minLength": 1, "format": "no-nul"},
            {"type": "array", "items": {"type": ["string", "number", "boolean"], "format": "no-nul"}},
        ],
    },
    /// Services that are started first.
    DependsOn: {
        "anyOf": [
            {"type": "array", "items": {"type": "string", "minLength": 1}},
            {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        ],
    },
    /// `true`, or the header's value.
    Hsts: {"anyOf": [{"type": "boolean"}, {"type": "string", "format": "hsts"}]},
    /// `true`, `false`, or a CA file.
    Verify: {"anyOf": [{"type": "boolean"}, {"type": "string", "minLength": 1, "format": "file"}]},
    /// The old tool's spellings of `proxy_protocol`.
    OldProxyProtocol: {"anyOf": [{"type": "boolean"}, {"enum": [1, 2, "1", "2", "v1", "v2"]}]},
}
