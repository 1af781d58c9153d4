use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A folder of programs of a test's own.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new(programs: &[(&str, &str)]) -> Programs {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Programs(folder)
    }

    async fn find(&self, docker_host: Option<&str>) -> Result<ComposeCli, ComposeError> {
        let path = format!("{}:/usr/bin:/bin", self.0.path().display());
        ComposeCli::find_with(docker_host, |name| match name {
            "PATH" => Some(path.clone().into()),
            "DOCKER_HOST" => Some("unix:///theirs".into()),
            "HOME" => Some("/home/x".into()),
            _ => None,
        })
        .await
    }

    fn stack(&self) -> StackFile {
        StackFile::new(self.0.path(), &self.0.path().join("f.yml"), "shop").unwrap()
    }
}

const NO_PLUGIN: (&str, &str) = ("docker", "exit 1");

#[tokio::test]
async fn the_plugin_comes_first_then_the_program_and_v1_is_refused() {
    let says = |name: &'static str, version: &str| (name, format!("echo {version}"));
    for (docker, program, found) in [
        (Some("2.26.1-4"), Some("2.1.0"), Ok("2.26.1-4")),
        (None, Some("v2.1.0"), Ok("2.1.0")),
        (None, Some("1.29.2"), Err("`docker-compose` is version 1.29.2, and compose v2 is needed")),
        (None, Some(""), Err("docker compose is not installed")),
        (Some("5.0"), None, Ok("5.0")),
    ] {
        let scripts = [
            docker.map_or_else(|| (NO_PLUGIN.0, NO_PLUGIN.1.to_owned()), |version| says("docker", version)),
            program.map_or_else(|| ("docker-compose", "exit 1".to_owned()), |version| says("docker-compose", version)),
        ];
        let scripts: Vec<(&str, &str)> = scripts.iter().map(|(name, script)| (*name, script.as_str())).collect();
        let got = Programs::new(&scripts).find(None).await;
        match (got, found) {
            (Ok(cli), Ok(version)) => assert_eq!(cli.version(), version),
            (Err(error), Err(told)) => {
                assert_eq!(error.to_string(), told);
                assert!(error.hint().is_some());
            }
            (got, found) => panic!("{got:?}, not {found:?}"),
        }
    }
}

#[tokio::test]
async fn only_what_is_allowed_reaches_compose() {
    let programs = Programs::new(&[("docker", "[ \"$2\" = version ] && echo 2.0 && exit; env; echo \"$@\"; pwd")]);
    let cli = programs.find(Some("unix:///ours")).await.unwrap();
    let mut lines = Vec::new();
    cli.run(&programs.stack(), ["up", "-d"], |line| lines.push(line.to_owned())).await.unwrap();
    let folder = programs.0.path().display().to_string();
    assert!(lines.contains(&"DOCKER_HOST=unix:///ours".to_owned()) && lines.contains(&"HOME=/home/x".to_owned()));
    let told = format!("compose --project-directory {folder} --file {folder}/f.yml --project-name shop up -d");
    assert!(lines.contains(&told) && lines.contains(&folder), "{lines:?}");
    // The shell adds PWD, SHLVL, _ and OLDPWD of its own.
    let names: Vec<&str> = lines.iter().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let own = ["PWD", "SHLVL", "_", "OLDPWD"];
    let mut passed: Vec<&str> = names.into_iter().filter(|name| !own.contains(name)).collect();
    passed.sort_unstable();
    assert_eq!(passed, ["DOCKER_HOST", "HOME", "PATH"]);
}

#[tokio::test]
async fn a_failure_says_what_compose_said_last() {
    let script = "[ \"$2\" = version ] && echo 2.0 && exit\n\
        for i in $(seq 30); do echo \"line $i\"; done; printf 'a\\rb\\n\\n' >&2\n\
        sleep 0.2; echo 'time=\"x\" level=fatal msg=\"invalid \\\"interpolation\\\" format\"' >&2; exit 14";
    let programs = Programs::new(&[("docker", script)]);
    let cli = programs.find(None).await.unwrap();
    let mut seen = 0;
    let error = cli.run(&programs.stack(), ["config"], |_| seen += 1).await.unwrap_err();
    assert_eq!(error.to_string(), "docker compose config failed: invalid \"interpolation\" format");
    assert!(error.hint().unwrap().contains("$$"));
    let ComposeError::Failed { lines, .. } = error else { panic!("{error}") };
    assert_eq!((lines.len(), seen), (KEPT, 33));
}

#[tokio::test]
async fn warnings_are_told_and_lines_that_are_none_are_not() {
    let script = "[ \"$2\" = version ] && echo 2.0 && exit\n\
        echo 'time=\"x\" level=warning msg=\"The \\\"X\\\" variable is not set.\"' >&2; echo other";
    let programs = Programs::new(&[("docker", script)]);
    let cli = programs.find(None).await.unwrap();
    assert_eq!(cli.check(&programs.stack()).await.unwrap(), ["The \"X\" variable is not set."]);
}

#[tokio::test]
async fn dropping_a_call_ends_it() {
    let programs = Programs::new(&[("docker", "[ \"$2\" = version ] && echo 2.0 && exit; echo $$; exec sleep 600")]);
    let cli = programs.find(None).await.unwrap();
    let stack = programs.stack();
    let (out, mut pids) = mpsc::channel(1);
    let call = tokio::spawn(async move { cli.run(&stack, ["up"], |line| drop(out.try_send(line.to_owned()))).await });
    let pid = pids.recv().await.unwrap();
    call.abort();
    let gone = || {
        !Path::new(&format!("/proc/{pid}/stat")).exists() || {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        }
    };
    timeout(Duration::from_secs(30), async {
        while !gone() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is killed");
}
