//! The names of everything that can be set.

/// A setting and the name of its variable and flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the variable of its name")]
pub enum Variable {
    Http,
    Https,
    PublicHttpsPort,
    Api,
    TrustedProxies,
    ProxyProtocol,
    AccessLog,
    Grace,
    Docker,
    DockerHost,
    Threads,
    LeEmail,
    LeStaging,
    AcmeDirectory,
    AcmeCa,
    AcmeEabKid,
    AcmeEabHmac,
    AcmeProfile,
    AcmeKey,
    AcmeDnsHook,
    AcmeDnsServer,
    AcmeDnsTsig,
    AcmeDnsResolver,
    AcmeDnsWait,
    ApiKey,
    WebhookSecret,
    ApiCompose,
    Reconcile,
    Env,
    PythonEnv,
    SourceFolder,
    Branch,
    Build,
}

impl Variable {
    /// All of them.
    pub const ALL: [Variable; 33] = [
        Variable::Http,
        Variable::Https,
        Variable::PublicHttpsPort,
        Variable::Api,
        Variable::TrustedProxies,
        Variable::ProxyProtocol,
        Variable::AccessLog,
        Variable::Grace,
        Variable::Docker,
        Variable::DockerHost,
        Variable::Threads,
        Variable::LeEmail,
        Variable::LeStaging,
        Variable::AcmeDirectory,
        Variable::AcmeCa,
        Variable::AcmeEabKid,
        Variable::AcmeEabHmac,
        Variable::AcmeProfile,
        Variable::AcmeKey,
        Variable::AcmeDnsHook,
        Variable::AcmeDnsServer,
        Variable::AcmeDnsTsig,
        Variable::AcmeDnsResolver,
        Variable::AcmeDnsWait,
        Variable::ApiKey,
        Variable::WebhookSecret,
        Variable::ApiCompose,
        Variable::Reconcile,
        Variable::Env,
        Variable::PythonEnv,
        Variable::SourceFolder,
        Variable::Branch,
        Variable::Build,
    ];

    /// The environment variable's name.
    pub fn name(self) -> &'static str {
        match self {
            Variable::Http => "ITSUP_HTTP",
            Variable::Https => "ITSUP_HTTPS",
            Variable::PublicHttpsPort => "ITSUP_PUBLIC_HTTPS_PORT",
            Variable::Api => "ITSUP_API",
            Variable::TrustedProxies => "ITSUP_TRUSTED_PROXIES",
            Variable::ProxyProtocol => "ITSUP_PROXY_PROTOCOL",
            Variable::AccessLog => "ITSUP_ACCESS_LOG",
            Variable::Grace => "ITSUP_GRACE",
            Variable::Docker => "ITSUP_DOCKER",
            Variable::DockerHost => "DOCKER_HOST",
            Variable::Threads => "ITSUP_THREADS",
            Variable::LeEmail => "LE_EMAIL",
            Variable::LeStaging => "LE_STAGING",
            Variable::AcmeDirectory => "ACME_DIRECTORY",
            Variable::AcmeCa => "ACME_CA",
            Variable::AcmeEabKid => "ACME_EAB_KID",
            Variable::AcmeEabHmac => "ACME_EAB_HMAC",
            Variable::AcmeProfile => "ACME_PROFILE",
            Variable::AcmeKey => "ACME_KEY",
            Variable::AcmeDnsHook => "ACME_DNS_HOOK",
            Variable::AcmeDnsServer => "ACME_DNS_SERVER",
            Variable::AcmeDnsTsig => "ACME_DNS_TSIG",
            Variable::AcmeDnsResolver => "ACME_DNS_RESOLVER",
            Variable::AcmeDnsWait => "ACME_DNS_WAIT",
            Variable::ApiKey => "API_KEY",
            Variable::WebhookSecret => "WEBHOOK_SECRET",
            Variable::ApiCompose => "ITSUP_API_COMPOSE",
            Variable::Reconcile => "ITSUP_RECONCILE",
            Variable::Env => "ITSUP_ENV",
            Variable::PythonEnv => "PYTHON_ENV",
            Variable::SourceFolder => "ITSUP_SOURCE",
            Variable::Branch => "ITSUP_BRANCH",
            Variable::Build => "ITSUP_BUILD",
        }
    }

    /// Whether a reload takes a new value up; the others need a restart.
    pub fn is_reloaded(self) -> bool {
        !matches!(
            self,
            Variable::Http
                | Variable::Https
                | Variable::Api
                | Variable::Docker
                | Variable::DockerHost
                | Variable::Threads
        )
    }
}
