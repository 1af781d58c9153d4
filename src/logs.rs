//! `itsup logs`: the access log, itsUP's own log and the containers' logs, merged by time.
//!
//! Every source is a stream of lines with a time. History is sorted as a whole; what follows is held back for a moment, so that
//! lines of different sources come in order.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use itsup_control::db::compose_name;
use itsup_control::settings::{Root, Settings};
use itsup_proxy::AccessLogTarget;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;

/// How long a followed line is held back for others that are older.
const HOLD: Duration = Duration::from_millis(300);
/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What is asked for.
pub(crate) struct Asked {
    /// A project, `proxy`, `api`, or everything.
    pub(crate) what: Option<String>,
    /// Go on as lines come.
    pub(crate) follow: bool,
    /// How many lines of the past.
    pub(crate) lines: usize,
    pub(crate) coloured: bool,
    pub(crate) json: bool,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    at: SystemTime,
    from: String,
    text: String,
}

/// What happens to a source.
enum News {
    Line(Line),
    /// Its past is told.
    CaughtUp,
}

/// Prints until there is no more, or with `follow` until the reader has enough.
pub(crate) fn logs(root: &Root, settings: &Settings, asked: &Asked) -> Result<(), Failure> {
    let (news, inbox) = channel();
    let mut sources = Sources { follow: asked.follow, lines: asked.lines, news, count: 0, children: Vec::new() };
    let project = match asked.what.as_deref() {
        None => None,
        Some("proxy") => {
            sources.access(settings, None)?;
            return finish(sources, inbox, asked);
        }
        Some("api") => {
            sources.own(root);
            return finish(sources, inbox, asked);
        }
        Some(project) => Some(project),
    };
    sources.access(settings, project)?;
    if project.is_none() {
        sources.own(root);
    }
    if settings.docker {
        sources.containers(settings.docker_host.as_deref(), project);
    }
    finish(sources, inbox, asked)
}

struct Sources {
    follow: bool,
    lines: usize,
    news: Sender<News>,
    count: usize,
    children: Vec<Child>,
}

impl Drop for Sources {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Sources {
    /// The access log; of one project's hosts alone where one is asked for.
    fn access(&mut self, settings: &Settings, project: Option<&str>) -> Result<(), Failure> {
        let AccessLogTarget::File(path) = &settings.access_log else { return Ok(()) };
        let project = project.map(str::to_owned);
        let parse = move |text: &str| access_line(text, project.as_deref());
        self.file(path, parse).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(())
    }

    /// What itsUP says itself: to the journal as a service, to logs/itsup.log where `bin/start-all.sh` started it.
    fn own(&mut self, root: &Root) {
        let path = root.path().join("logs/itsup.log");
        if path.exists() && self.file(&path, own_line).is_ok() {
            return;
        }
        let mut command = Command::new("journalctl");
        command.args(["--unit=itsup.service", "--output=json", "--no-pager"]).arg(format!("--lines={}", self.lines));
        self.program(command, "itsup".into(), |_, text| journal_line(text));
    }

    /// All containers of a project, or of all of them.
    fn containers(&mut self, host: Option<&str>, project: Option<&str>) {
        let docker = || {
            let mut command = Command::new("docker");
            command.envs(host.map(|host| ("DOCKER_HOST", host)));
            command
        };
        let mut list = docker();
        let label = "com.docker.compose.project";
        let filter = project
            .map_or_else(|| format!("label={label}"), |project| format!("label={label}={}", compose_name(project)));
        list.args(["ps", "--all", "--no-trunc", "--filter", &filter, "--format", "{{.ID}} {{.Names}}"]);
        let Ok(listed) = list.stderr(Stdio::null()).output() else { return };
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some((id, name)) = line.split_once(' ') else { continue };
            let mut command = docker();
            command.args(["logs", "--timestamps"]).arg(format!("--tail={}", self.lines)).arg(id);
            self.program(command, name.to_owned(), container_line);
        }
    }

    fn file(&mut self, path: &Path, parse: impl Fn(&str) -> Option<Line> + Send + 'static) -> io::Result<()> {
        if !path.exists() && !self.follow {
            return Ok(());
        }
        let mut tail = Tail::open(path)?;
        let (news, follow) = (self.news.clone(), self.follow);
        self.count += 1;
        std::thread::spawn(move || {
            let mut send = |text: &str| parse(text).is_none_or(|line| news.send(News::Line(line)).is_ok());
            // A file that cannot be read any more has told what it has to tell.
            let _ = tail.read(&mut send);
            let _ = news.send(News::CaughtUp);
            if follow {
                while matches!(tail.read(&mut send), Ok(true)) {
                    std::thread::sleep(LOOK);
                }
            }
        });
        Ok(())
    }

    fn program(&mut self, mut command: Command, name: String, parse: fn(&str, &str) -> Option<Line>) {
        if self.follow {
            command.arg("--follow");
        }
        // docker: both streams of a container are its log. journalctl: complaints come as lines that do not parse.
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = started else { return };
        for stream in [
            child.stdout.take().map(Box::new).map(|s| s as Box<dyn Read + Send>),
            child.stderr.take().map(Box::new).map(|s| s as _),
        ]
        .into_iter()
        .flatten()
        {
            self.count += 1;
            let (news, name) = (self.news.clone(), name.clone());
            std::thread::spawn(move || {
                for text in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let text = String::from_utf8_lossy(&text);
                    if parse(&name, &text).is_some_and(|line| news.send(News::Line(line)).is_err()) {
                        return;
                    }
                }
                let _ = news.send(News::CaughtUp);
            });
        }
        self.children.push(child);
    }
}

/// A file that is read as it grows, also after it was rotated.
struct Tail {
    path: PathBuf,
    file: Option<std::fs::File>,
    half: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> io::Result<Tail> {
        let file = match std::fs::File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Tail { path: path.to_owned(), file, half: Vec::new() })
    }

    /// Gives every whole line that is new; false when nobody wants more.
    fn read(&mut self, give: &mut impl FnMut(&str) -> bool) -> io::Result<bool> {
        if !self.rest(give)? {
            return Ok(false);
        }
        if self.was_replaced() {
            self.file = std::fs::File::open(&self.path).ok();
            self.half.clear();
            return self.rest(give);
        }
        Ok(true)
    }

    fn rest(&mut self, give: &mut impl FnMut(&str) -> bool) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(true) };
        let mut reader = BufReader::new(file);
        loop {
            let read = reader.read_until(b'\n', &mut self.half)?;
            if read == 0 || self.half.last() != Some(&b'\n') {
                return Ok(true);
            }
            let wanted = give(String::from_utf8_lossy(&self.half).trim_end());
            self.half.clear();
            if !wanted {
                return Ok(false);
            }
        }
    }

    fn was_replaced(&mut self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(there) = std::fs::metadata(&self.path) else { return false };
        let Some(file) = &mut self.file else { return true };
        let same = file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (there.dev(), there.ino()));
        // Emptied in place: from its beginning again.
        if same && file.stream_position().is_ok_and(|at| at > there.len()) {
            return file.seek(SeekFrom::Start(0)).is_ok();
        }
        !same
    }
}

fn finish(sources: Sources, inbox: Receiver<News>, asked: &Asked) -> Result<(), Failure> {
    let mut printer = Printer { asked, out: io::stdout() };
    let done = print_all(&sources, &inbox, &mut printer);
    match done {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done.context("stdout cannot be written to")?),
    }
}

fn print_all(sources: &Sources, inbox: &Receiver<News>, printer: &mut Printer<'_>) -> io::Result<()> {
    let mut past: Vec<Line> = Vec::new();
    let (mut caught_up, mut last) = (0, Instant::now());
    // A followed program never says that its past is told: quiet is.
    while caught_up < sources.count {
        match inbox.recv_timeout(HOLD) {
            Ok(News::Line(line)) => {
                past.push(line);
                last = Instant::now();
            }
            Ok(News::CaughtUp) => caught_up += 1,
            Err(RecvTimeoutError::Timeout) if sources.follow && last.elapsed() >= HOLD => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    past.sort_by_key(|line| line.at);
    let skipped = past.len().saturating_sub(sources.lines);
    for line in past.drain(..).skip(skipped) {
        printer.print(&line)?;
    }
    if sources.follow { follow(inbox, printer) } else { Ok(()) }
}

/// Prints each line when it has been held for a moment, the oldest first.
fn follow(inbox: &Receiver<News>, printer: &mut Printer<'_>) -> io::Result<()> {
    let mut held: BTreeMap<(SystemTime, u64), (Instant, Line)> = BTreeMap::new();
    let mut number = 0;
    loop {
        match inbox.recv_timeout(LOOK) {
            Ok(News::Line(line)) => {
                number += 1;
                held.insert((line.at, number), (Instant::now(), line));
            }
            Ok(News::CaughtUp) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return held.into_values().try_for_each(|(_, line)| printer.print(&line));
            }
        }
        while held.first_key_value().is_some_and(|(_, (since, _))| since.elapsed() >= HOLD) {
            if let Some((_, (_, line))) = held.pop_first() {
                printer.print(&line)?;
            }
        }
    }
}

struct Printer<'a> {
    asked: &'a Asked,
    out: io::Stdout,
}

impl Printer<'_> {
    fn print(&mut self, line: &Line) -> io::Result<()> {
        let at = OffsetDateTime::from(line.at);
        let mut out = self.out.lock();
        if self.asked.json {
            let at = at.format(&Rfc3339).unwrap_or_default();
            writeln!(out, "{}", serde_json::json!({ "at": at, "from": line.from, "text": line.text }))?;
        } else {
            let (date, clock) = (at.date(), at.time());
            let clock =
                format!("{:02}:{:02}:{:02}.{:03}", clock.hour(), clock.minute(), clock.second(), clock.millisecond());
            let (on, off) = if self.asked.coloured { (colour(&line.from), "\x1b[0m") } else { ("", "") };
            writeln!(out, "{date} {clock} {on}{}{off} {}", line.from, printable(&line.text))?;
        }
        out.flush()
    }
}

/// A source has the same colour each time.
fn colour(from: &str) -> &'static str {
    const COLOURS: [&str; 6] = ["\x1b[36m", "\x1b[32m", "\x1b[33m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];
    match from {
        "proxy" => COLOURS[0],
        "itsup" => COLOURS[3],
        other => COLOURS[other.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 6],
    }
}

/// What a container writes must not steer the terminal; colours may stay.
fn printable(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' if rest.peek() == Some(&'[') => {
                let parameters: String = rest.clone().skip(1).take_while(|c| c.is_ascii_digit() || *c == ';').collect();
                if rest.clone().nth(1 + parameters.len()) == Some('m') {
                    plain.push(c);
                } else {
                    plain.push('\u{fffd}');
                }
            }
            '\t' => plain.push(c),
            c if c.is_control() => plain.push('\u{fffd}'),
            c => plain.push(c),
        }
    }
    plain
}

/// One line of the access log, as people read it.
fn access_line(text: &str, project: Option<&str>) -> Option<Line> {
    let value: Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| value[name].as_str().unwrap_or_default();
    if let Some(project) = project {
        let ours = field("upstream").split('/').next() == Some(project) || field("site") == project;
        if !ours {
            return None;
        }
    }
    let at = OffsetDateTime::parse(field("time"), &Rfc3339).ok()?;
    let took = value["duration_ms"].as_f64().map(|ms| format!(" {ms} ms")).unwrap_or_default();
    let mut told = format!(
        "{} {} {}{} {}{took}",
        field("client"),
        field("method"),
        field("host"),
        field("path"),
        value["status"].as_u64().unwrap_or_default()
    );
    if !field("failed").is_empty() {
        told.push_str(&format!(" ({}: {})", field("failed"), field("why")));
    }
    Some(Line { at: at.into(), from: "proxy".into(), text: told })
}

/// A line of our own log: its time is in front.
fn own_line(text: &str) -> Option<Line> {
    let (first, rest) = text.split_once(' ')?;
    let at = OffsetDateTime::parse(first, &Rfc3339).ok()?;
    Some(Line { at: at.into(), from: "itsup".into(), text: rest.trim_start().to_owned() })
}

fn journal_line(text: &str) -> Option<Line> {
    let value: Value = serde_json::from_str(text).ok()?;
    let micros: u64 = value["__REALTIME_TIMESTAMP"].as_str()?.parse().ok()?;
    let text = value["MESSAGE"].as_str()?;
    // Our own time stands in front of what we wrote; the journal's is as good.
    let text = own_line(text).map_or_else(|| text.to_owned(), |line| line.text);
    Some(Line { at: SystemTime::UNIX_EPOCH + Duration::from_micros(micros), from: "itsup".into(), text })
}

fn container_line(name: &str, text: &str) -> Option<Line> {
    let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
    let at = OffsetDateTime::parse(first, &Rfc3339).ok()?;
    Some(Line { at: at.into(), from: name.to_owned(), text: rest.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_that_steer_a_terminal_are_taken_out() {
        for (text, shown) in [
            ("plain\ttext", "plain\ttext"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b[2Jgone", "\u{fffd}[2Jgone"),
            ("\x1b]0;title\x07", "\u{fffd}]0;title\u{fffd}"),
            ("\r\x08", "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
    }

    #[test]
    fn lines_of_every_source_have_a_time() {
        let at = OffsetDateTime::parse("2026-11-25T10:00:00.5Z", &Rfc3339).unwrap();
        let own = own_line("2026-11-25T10:00:00.5Z  INFO itsup: ready").unwrap();
        assert_eq!((own.at, own.text.as_str()), (SystemTime::from(at), "INFO itsup: ready"));
        let container = container_line("web-1", "2026-11-25T10:00:00.500000000Z hello world").unwrap();
        assert_eq!(
            (container.at, container.from.as_str(), container.text.as_str()),
            (at.into(), "web-1", "hello world")
        );
        assert_eq!(container_line("web-1", "2026-11-25T10:00:00Z").unwrap().text, "");
        let micros = at.unix_timestamp_nanos() / 1000;
        let journal = journal_line(&format!(r#"{{"__REALTIME_TIMESTAMP":"{micros}","MESSAGE":"hi"}}"#)).unwrap();
        assert_eq!(journal.at, SystemTime::from(at));
        for nonsense in ["", "x", "{}", "no time here"] {
            assert!(own_line(nonsense).is_none() && journal_line(nonsense).is_none(), "{nonsense}");
            assert!(container_line("web-1", nonsense).is_none() && access_line(nonsense, None).is_none(), "{nonsense}");
        }
    }

    #[test]
    fn a_file_is_followed_when_it_grows_is_emptied_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::open(&path).unwrap();
        let read = |tail: &mut Tail| {
            let mut lines = Vec::new();
            assert!(
                tail.read(&mut |line| {
                    lines.push(line.to_owned());
                    true
                })
                .unwrap()
            );
            lines
        };
        assert!(read(&mut tail).is_empty(), "not there yet");
        std::fs::write(&path, "one\ntwo\nhal").unwrap();
        assert_eq!(read(&mut tail), ["one", "two"]);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"f\n").unwrap();
        assert_eq!(read(&mut tail), ["half"]);
        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(read(&mut tail), ["x"], "emptied in place");
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(folder.path().join("log.1"))
            .unwrap()
            .write_all(b"late\n")
            .unwrap();
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(read(&mut tail), ["late", "new"], "rotated");
    }
}
