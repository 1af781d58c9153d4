use super::*;

fn cores() -> NonZeroUsize {
    NonZeroUsize::new(3).unwrap()
}

fn sources(flags: &[(Variable, &str)], environment: &[(&str, &str)], file: &str) -> Sources {
    let flags = flags.iter().map(|(v, text)| (*v, text.to_string())).collect();
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    let mut sources = Sources::new(flags, |name| environment.get(name).cloned());
    sources.take("/root/.env".into(), file.as_bytes()).unwrap();
    sources
}

fn resolve(file: &str) -> Result<Settings, Vec<String>> {
    Settings::resolve(Root::new("/root"), &sources(&[], &[], file), cores())
        .map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults() {
    let settings = resolve("").unwrap();
    assert_eq!(settings.http.to_string(), "[::]:80");
    assert_eq!(settings.https.to_string(), "[::]:443");
    assert_eq!(settings.public_https_port, 443);
    assert_eq!(settings.api.unwrap().to_string(), "127.0.0.1:8888");
    assert!(settings.trusted_proxies.is_empty() && settings.proxy_protocol.is_empty());
    assert_eq!(settings.access_log, AccessLogTarget::File("/root/logs/access.log".into()));
    assert_eq!(settings.grace, Duration::from_secs(30));
    assert!(settings.docker);
    assert_eq!(settings.docker_host, None);
    assert_eq!(settings.threads, cores());
    assert_eq!(settings.acme, None);
}

#[test]
fn a_mail_address_turns_acme_on() {
    let acme = |file: &str| resolve(file).unwrap().acme.unwrap();
    let plain = acme("LE_EMAIL=me@example.com");
    assert_eq!((plain.directory.as_str(), plain.own_directory), (acme::LETS_ENCRYPT, false));
    assert!(acme("LE_EMAIL=me@example.com\nLE_STAGING=1").is_staging());
    let own = acme(
        "LE_EMAIL=me@example.com\nLE_STAGING=1\nACME_DIRECTORY=https://ca.lan/dir\nACME_CA=ca.pem\nACME_KEY=rsa2048\n\
         ACME_EAB_KID=kid\nACME_EAB_HMAC=zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n\
         ACME_DNS_SERVER=10.0.0.1\nACME_DNS_TSIG=hmac-sha256:key.:c2VjcmV0\nACME_DNS_WAIT=5s\nACME_PROFILE=shortlived",
    );
    assert_eq!((own.directory.as_str(), own.own_directory), ("https://ca.lan/dir", true));
    assert_eq!(own.ca, Some("/root/ca.pem".into()));
    assert_eq!(own.binding.as_ref().unwrap().hmac.0.len(), 48);
    let Some(acme::Dns::Update { server, key: Some(key) }) = &own.dns else { panic!("{:?}", own.dns) };
    assert_eq!((server.as_str(), key.name.as_str(), key.secret.0.as_slice()), ("10.0.0.1:53", "key", &b"secret"[..]));
    assert!(!format!("{own:?}").contains("115, 101"), "secrets are not shown");
    assert_eq!(resolve("LE_STAGING=1\nACME_KEY=p384").unwrap().acme, None);
}

#[test]
fn faulty_acme_settings_are_named() {
    let faults = resolve(
        "LE_EMAIL=me\nACME_DIRECTORY=http://ca\nACME_KEY=dsa\nACME_EAB_HMAC=!\nACME_DNS_TSIG=hmac-md5:a:b\nACME_DNS_RESOLVER=ns",
    );
    insta::assert_snapshot!(faults.unwrap_err().join("\n"));
    let faults = resolve("LE_EMAIL=me@x.y\nACME_EAB_KID=kid\nACME_DNS_TSIG=hmac-sha256:a:c2VjcmV0").unwrap_err();
    insta::assert_snapshot!(faults.join("\n"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "ITSUP_GRACE=1s\nITSUP_HTTP=127.0.0.1:1\nITSUP_HTTPS=127.0.0.1:2\n";
    let environment = [("ITSUP_GRACE", "2s"), ("ITSUP_HTTP", "127.0.0.1:3"), ("ITSUP_HTTPS", "")];
    let sources = sources(&[(Variable::Grace, "3s")], &environment, file);
    let settings = Settings::resolve(Root::new("."), &sources, cores()).unwrap();
    assert_eq!(settings.grace, Duration::from_secs(3));
    assert_eq!(settings.http.port(), 3);
    assert_eq!(settings.https.port(), 2, "an empty variable counts as not set");
}

#[test]
fn every_value() {
    let settings = resolve(
        "ITSUP_API=off\nITSUP_TRUSTED_PROXIES='10.1.2.3/8, ::1 192.168.1.1'\nITSUP_ACCESS_LOG=stdout\n\
         ITSUP_DOCKER=0\nDOCKER_HOST=tcp://10.0.0.1:2375\nITSUP_THREADS=8\nITSUP_PUBLIC_HTTPS_PORT=8443\nITSUP_GRACE=250ms\n",
    )
    .unwrap();
    assert_eq!(settings.api, None);
    let networks: Vec<String> = settings.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128", "192.168.1.1/32"]);
    assert_eq!(settings.access_log, AccessLogTarget::Stdout);
    assert!(!settings.docker);
    assert_eq!(settings.docker_host.as_deref(), Some("tcp://10.0.0.1:2375"));
    assert_eq!(settings.threads.get(), 8);
    assert_eq!(settings.public_https_port, 8443);
    assert_eq!(settings.grace, Duration::from_millis(250));
}

#[test]
fn faults_name_variable_source_and_remedy() {
    let faults =
        resolve("ITSUP_HTTP=:80\nITSUP_GRACE=30\nITSUP_TRUSTED_PROXIES=10.0.0.0/33\nITSUP_HTTTPS=x\nITSUP_ROOT=/x");
    insta::assert_snapshot!(faults.unwrap_err().join("\n"), @r"
    /root/.env:4: unknown setting ITSUP_HTTTPS (hint: did you mean ITSUP_HTTPS?)
    /root/.env:5: ITSUP_ROOT: cannot be set in .env, as it says where .env is (hint: use --root or the environment)
    /root/.env:1: ITSUP_HTTP: `:80` has no address (hint: write [::]:80)
    /root/.env:3: ITSUP_TRUSTED_PROXIES: `10.0.0.0/33` is not a network (hint: write networks with commas between them, as in 10.0.0.0/8,192.168.1.2,fd00::/8)
    /root/.env:2: ITSUP_GRACE: `30` is not a duration (hint: write a whole number and ms, s, m, h or d, as in 30s)
    ");
    let sources = sources(&[(Variable::Threads, "0")], &[("ITSUP_DOCKER", "maybe")], "");
    let faults = Settings::resolve(Root::new("."), &sources, cores()).unwrap_err();
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(faults.join("\n"), @r"
    environment: ITSUP_DOCKER: `maybe` is neither on nor off (hint: write on or off)
    command line: ITSUP_THREADS: `0` is not a number of threads (hint: write a number from 1 to 1024)
    ");
}

#[test]
fn a_reload_takes_up_some_and_names_the_rest() {
    let old = resolve("").unwrap();
    let new =
        resolve("ITSUP_HTTP=[::]:81\nITSUP_GRACE=1s\nITSUP_THREADS=9\nITSUP_ACCESS_LOG=off\nITSUP_PUBLIC_HTTPS_PORT=1");
    let (settings, restart) = old.reloaded(&new.unwrap());
    assert_eq!(restart, [Variable::Http, Variable::Threads]);
    assert!(restart.iter().all(|variable| !variable.is_reloaded()));
    assert_eq!((settings.http, settings.threads), (old.http, old.threads));
    assert_eq!(settings.grace, Duration::from_secs(1));
    assert_eq!(settings.access_log, AccessLogTarget::Off);
    assert_eq!(settings.public_https_port, 1);
}

#[test]
fn ipv4_alone_where_there_is_no_ipv6() {
    for (address, wanted) in [("[::]:80", "0.0.0.0:80"), ("[::1]:80", "[::1]:80"), ("0.0.0.0:80", "0.0.0.0:80")] {
        assert_eq!(without_ipv6(address.parse().unwrap()).to_string(), wanted);
    }
}

#[test]
fn a_missing_env_file_is_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let mut sources = sources(&[], &[], "ITSUP_GRACE=1s");
    sources.read(&root).unwrap();
    assert_eq!(Settings::resolve(root.clone(), &sources, cores()).unwrap().grace, Duration::from_secs(30));
    std::fs::write(root.env(), "ITSUP_GRACE=5s\r\nbroken").unwrap();
    let faults = sources.read(&root).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].to_string().starts_with(&format!("{}:2: ", root.env().display())), "{}", faults[0]);
}

#[test]
fn the_sample_explains_every_variable_with_a_value_that_is_taken() {
    let sample = include_str!("../../../.env.sample");
    assert_eq!(resolve(sample), resolve(""), "as it stands it sets nothing");
    for variable in Variable::ALL {
        let line = sample.lines().find(|line| line.starts_with(&format!("#{}=", variable.name())));
        let line = line.unwrap_or_else(|| panic!("{} is not explained", variable.name()));
        resolve(line.trim_start_matches('#')).unwrap();
    }
}
