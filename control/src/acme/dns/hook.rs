//! The user's own program that sets TXT records.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Txt;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How much of what it says is shown.
const SHOWN: usize = 300;

/// Runs it: `add FQDN VALUE` or `remove FQDN VALUE`.
pub(super) async fn run(program: &Path, what: &str, txt: &Txt) -> Result<(), String> {
    let shown = program.display();
    let mut command = Command::new(program);
    command.args([what, &txt.name, &txt.value]).stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(LIMIT, command.output())
        .await
        .map_err(|_| format!("ACME_DNS_HOOK: {shown} {what} takes longer than {} s", LIMIT.as_secs()))?
        .map_err(|error| format!("ACME_DNS_HOOK: {shown} cannot be run: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(if done.stderr.is_empty() { &done.stdout } else { &done.stderr });
    let last: String = said.trim().lines().last().unwrap_or("it says nothing").chars().take(SHOWN).collect();
    Err(format!("ACME_DNS_HOOK: {shown} {what} failed ({}): {last}", done.status))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_told_all_and_what_it_says_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("hook");
        // Written by another process: one of ours that forks meanwhile would hold it open for writing.
        let script =
            "#!/bin/sh\n[ \"$1\" = add ] && echo \"$@\" > \"$0.said\" && exit 0\necho one >&2\necho two >&2\nexit 3\n";
        let text = format!("cat > {0} && chmod 755 {0}", program.display());
        let mut shell = std::process::Command::new("sh").args(["-c", &text]).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        assert_eq!(program.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        let txt = Txt::new("*.example.com", "value".into());
        run(&program, "add", &txt).await.unwrap();
        let said = std::fs::read_to_string(folder.path().join("hook.said")).unwrap();
        assert_eq!(said, "add _acme-challenge.example.com value\n");
        let error = run(&program, "remove", &txt).await.unwrap_err();
        assert!(error.ends_with("remove failed (exit status: 3): two"), "{error}");
        let missing = run(Path::new("/nowhere/hook"), "add", &txt).await.unwrap_err();
        assert!(missing.contains("cannot be run"), "{missing}");
    }
}
