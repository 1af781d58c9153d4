//! docker compose v2, by its command line: found, called without our secrets, and read line by line.
//!
//! The only file that starts it. It must not know what is in a compose file, nor why something is done.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;

#[cfg(test)]
mod tests;

/// What compose and the credential helpers that it calls need of our environment. Nothing else reaches them, so that a compose file
/// can fill in no variable of ours.
const ALLOWED: [&str; 13] = [
    "PATH",
    "HOME",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "DOCKER_API_VERSION",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TERM",
    "XDG_RUNTIME_DIR",
];
/// How long it may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(20);
/// The last lines of a call that are kept for its error.
const KEPT: usize = 20;

/// Why compose cannot be used, or a call of it failed.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    #[error("docker compose is not installed")]
    Missing,
    #[error("`{program}` is version {version}, and compose v2 is needed")]
    TooOld { program: String, version: String },
    #[error("`{program}` cannot be run: {error}")]
    Start { program: String, error: io::Error },
    /// It said no.
    #[error("docker compose {verb} failed{}", last(lines))]
    Failed { verb: String, lines: Vec<String> },
}

impl ComposeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ComposeError::Missing | ComposeError::TooOld { .. } => Some(
                "install compose v2: the plugin `docker compose` (package docker-compose-plugin) or `docker-compose` 2",
            ),
            ComposeError::Failed { lines, .. } if lines.iter().any(|line| line.contains("nterpolation")) => {
                Some("`$` has compose fill in a variable; write `$$` for a dollar sign")
            }
            ComposeError::Start { .. } | ComposeError::Failed { .. } => None,
        }
    }
}

fn last(lines: &[String]) -> String {
    lines.last().map(|line| format!(": {line}")).unwrap_or_default()
}

/// A compose v2 that was found.
#[derive(Clone, Debug)]
pub struct ComposeCli {
    /// The program and its first arguments.
    program: Vec<OsString>,
    version: String,
    environment: Vec<(OsString, OsString)>,
}

/// A stack to compose: the folder that paths are relative to, the file, and the project's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackFile {
    pub folder: PathBuf,
    pub file: PathBuf,
    pub project: String,
}

impl ComposeCli {
    /// Finds compose v2: the plugin of the docker command, or the program `docker-compose`.
    ///
    /// `docker_host` is where the engine is, where a setting of ours says so.
    pub async fn find(docker_host: Option<&str>) -> Result<ComposeCli, ComposeError> {
        Self::find_with(docker_host, |name| std::env::var_os(name)).await
    }

    async fn find_with(
        docker_host: Option<&str>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<ComposeCli, ComposeError> {
        let mut environment: Vec<(OsString, OsString)> =
            ALLOWED.iter().filter_map(|name| Some((OsString::from(name), variable(name)?))).collect();
        if let Some(host) = docker_host.filter(|host| !host.is_empty()) {
            environment.retain(|(name, _)| name != "DOCKER_HOST");
            environment.push(("DOCKER_HOST".into(), host.into()));
        }
        let mut too_old = None;
        for program in [&["docker", "compose"][..], &["docker-compose"]] {
            let found = ComposeCli {
                program: program.iter().map(OsString::from).collect(),
                version: String::new(),
                environment: environment.clone(),
            };
            let Some(version) = found.ask_version().await else { continue };
            if major(&version).is_some_and(|major| major >= 2) {
                return Ok(ComposeCli { version, ..found });
            }
            too_old = Some(ComposeError::TooOld { program: program.join(" "), version });
        }
        Err(too_old.unwrap_or(ComposeError::Missing))
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    async fn ask_version(&self) -> Option<String> {
        let mut command = self.bare();
        command.args(["version", "--short"]);
        let output = timeout(VERSION_LIMIT, command.stderr(Stdio::null()).output()).await.ok()?.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().trim_start_matches('v').to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    /// Has compose read a file and say whether it is valid. Returns its warnings.
    pub async fn check(&self, stack: &StackFile) -> Result<Vec<String>, ComposeError> {
        let mut lines = Vec::new();
        self.run(stack, ["config", "--quiet"], |line| lines.push(line.to_owned())).await?;
        Ok(lines.iter().filter_map(|line| message(line)).collect())
    }

    /// Runs compose on a stack, and hands over each line that it prints.
    ///
    /// Dropping the future ends compose.
    pub async fn run<I>(&self, stack: &StackFile, arguments: I, line: impl FnMut(&str)) -> Result<(), ComposeError>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.run_holding(stack, arguments, Stdio::null(), line).await
    }

    /// The same with something as its standard input that it and its children hold for as long as they live.
    pub async fn run_holding<I>(
        &self,
        stack: &StackFile,
        arguments: I,
        held: Stdio,
        mut line: impl FnMut(&str),
    ) -> Result<(), ComposeError>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let verb = arguments.first().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
        let mut command = self.on(stack);
        // A group of its own: what interrupts us is for us to pass on.
        command.args(arguments).stdin(held).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.kill_on_drop(true).spawn().map_err(|error| self.start_error(error))?;
        let (out, mut lines) = mpsc::channel(64);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read_lines(stdout, out.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read_lines(stderr, out));
        }
        let mut kept: Vec<String> = Vec::new();
        while let Some(text) = lines.recv().await {
            line(&text);
            if kept.len() == KEPT {
                kept.remove(0);
            }
            kept.push(message(&text).unwrap_or(text));
        }
        let status: ExitStatus = child.wait().await.map_err(|error| self.start_error(error))?;
        if status.success() { Ok(()) } else { Err(ComposeError::Failed { verb, lines: kept }) }
    }

    /// A command for a terminal: compose on a stack, with this process's own input and output.
    pub fn interactive(&self, stack: &StackFile) -> std::process::Command {
        self.on(stack).into_std()
    }

    fn on(&self, stack: &StackFile) -> Command {
        let mut command = self.bare();
        command.arg("--project-directory").arg(&stack.folder).arg("--file").arg(&stack.file);
        // A `.env` of the folder that we were started in is none of the stack's.
        command.arg("--project-name").arg(&stack.project).current_dir(&stack.folder);
        command
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).env_clear().envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    fn start_error(&self, error: io::Error) -> ComposeError {
        let words: Vec<_> = self.program.iter().map(|word| word.to_string_lossy()).collect();
        ComposeError::Start { program: words.join(" "), error }
    }
}

impl StackFile {
    pub fn new(folder: &Path, file: &Path, project: &str) -> io::Result<StackFile> {
        // Compose is run in the folder, so that relative paths would lead elsewhere.
        Ok(StackFile {
            folder: std::path::absolute(folder)?,
            file: std::path::absolute(file)?,
            project: project.to_owned(),
        })
    }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// What a line of compose's log says: `time="..." level=warning msg="..."`. `None` for any other line.
fn message(line: &str) -> Option<String> {
    let text = line.split_once("msg=\"")?.1;
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Some(out)
}

/// Sends each line; what overwrites a line in a terminal (`\r`) is a line as well.
async fn read_lines(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut buffer = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        let read = from.read(&mut chunk).await.unwrap_or(0);
        buffer.extend_from_slice(&chunk[..read]);
        while let Some(end) = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            send(&line[..end], &to).await;
        }
        if read == 0 {
            return send(&buffer, &to).await;
        }
    }
}

async fn send(line: &[u8], to: &mpsc::Sender<String>) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    if !text.trim().is_empty() {
        // Whoever no longer listens has ended the call.
        let _ = to.send(text).await;
    }
}
