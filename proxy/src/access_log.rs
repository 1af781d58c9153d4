//! The access log: one JSON line a request, formatted where it happens, written elsewhere.
//!
//! A data thread appends lines to a buffer of its own and hands the buffer over when it is large enough or old enough. A
//! writer thread does all the IO. When the writer cannot keep up, lines are dropped and counted, never waited for.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::config::AccessLogTarget;

/// A buffer is handed over when it holds this much.
const FULL: usize = 32 * 1024;
/// A buffer is handed over when its first line is this old.
pub(crate) const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Buffers that may wait for the writer.
const QUEUE: usize = 256;

/// One line of the log, borrowed from the request it tells of.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) at: SystemTime,
    pub(crate) client: IpAddr,
    pub(crate) host: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) protocol: &'a str,
    /// 0 where no answer was given.
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) took: Duration,
    pub(crate) site: &'a str,
    pub(crate) upstream: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) retries: u32,
    pub(crate) tls: &'a str,
    pub(crate) request_id: &'a str,
    /// Who failed (`client`, `upstream`, `proxy`), or empty.
    pub(crate) failed: &'a str,
    /// What happened, where something did.
    pub(crate) why: &'a str,
}

enum Message {
    Lines(Vec<u8>),
    Reopen,
    Target(AccessLogTarget),
    Sync(SyncSender<()>),
}

/// The way to the writer thread.
#[derive(Debug)]
pub(crate) struct AccessLog {
    on: AtomicBool,
    to_writer: SyncSender<Message>,
}

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Starts the writer thread; it ends when the log is dropped.
    pub(crate) fn start(target: AccessLogTarget) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let (to_writer, from_threads) = sync_channel(QUEUE);
        let on = AtomicBool::new(target != AccessLogTarget::Off);
        let mut writer = Writer::new(target);
        let thread = std::thread::Builder::new().name("itsup-log".into()).spawn(move || writer.run(&from_threads))?;
        Ok((Arc::new(Self { on, to_writer }), thread))
    }

    /// Whether lines are wanted at all.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Appends a line; false when a full buffer had to be thrown away.
    pub(crate) fn write(&self, record: &Record<'_>) -> bool {
        LINES.with_borrow_mut(|lines| {
            record.render(lines);
            lines.len() < FULL || self.hand_over(lines)
        })
    }

    /// Hands this thread's lines over, however few.
    pub(crate) fn flush(&self) -> bool {
        LINES.with_borrow_mut(|lines| lines.is_empty() || self.hand_over(lines))
    }

    fn hand_over(&self, lines: &mut Vec<u8>) -> bool {
        match self.to_writer.try_send(Message::Lines(std::mem::take(lines))) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Opens the file again, as after a rotation.
    pub(crate) fn reopen(&self) {
        let _ = self.to_writer.send(Message::Reopen);
    }

    /// Writes to another place from now on.
    pub(crate) fn retarget(&self, target: AccessLogTarget) {
        self.on.store(target != AccessLogTarget::Off, Ordering::Relaxed);
        let _ = self.to_writer.send(Message::Target(target));
    }

    /// Waits until all that was handed over is written.
    pub(crate) fn sync(&self) {
        let (done, wait) = sync_channel(1);
        if self.to_writer.send(Message::Sync(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

struct Writer {
    target: AccessLogTarget,
    file: Option<File>,
    complained: bool,
}

impl Writer {
    fn new(target: AccessLogTarget) -> Self {
        let mut writer = Self { target, file: None, complained: false };
        writer.open();
        writer
    }

    fn run(&mut self, from_threads: &Receiver<Message>) {
        while let Ok(message) = from_threads.recv() {
            match message {
                Message::Lines(lines) => self.write(&lines),
                Message::Reopen => self.open(),
                Message::Target(target) if target == self.target => {}
                Message::Target(target) => {
                    self.target = target;
                    self.open();
                }
                Message::Sync(done) => drop(done.send(())),
            }
        }
    }

    fn open(&mut self) {
        self.file = None;
        let AccessLogTarget::File(path) = &self.target else { return };
        match append_to(path) {
            Ok(file) => {
                self.file = Some(file);
                self.complained = false;
            }
            Err(error) => tracing::error!(path = %path.display(), %error, "cannot open the access log; lines are lost"),
        }
    }

    fn write(&mut self, lines: &[u8]) {
        let written = match (&self.target, &mut self.file) {
            (AccessLogTarget::Stdout, _) => io::stdout().lock().write_all(lines),
            (AccessLogTarget::File(_), Some(file)) => file.write_all(lines),
            _ => Ok(()),
        };
        match written {
            Ok(()) => self.complained = false,
            // A full disk must not fill the other log too.
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::error!(%error, "cannot write the access log; lines are lost");
            }
            Err(_) => {}
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

impl Record<'_> {
    fn render(&self, out: &mut Vec<u8>) {
        let at = humantime::format_rfc3339_millis(self.at);
        let _ = write!(out, "{{\"time\":\"{at}\",\"client\":\"{}\"", self.client);
        for (name, value) in [
            ("host", self.host),
            ("method", self.method),
            ("path", self.path),
            ("protocol", self.protocol),
            ("tls", self.tls),
            ("request_id", self.request_id),
            ("site", self.site),
            ("upstream", self.upstream),
            ("endpoint", self.endpoint),
            ("failed", self.failed),
            ("why", self.why),
        ] {
            if !value.is_empty() {
                let _ = write!(out, ",\"{name}\":\"");
                escape(value, out);
                out.push(b'"');
            }
        }
        let micros = self.took.as_micros();
        let _ = writeln!(
            out,
            ",\"status\":{},\"bytes_in\":{},\"bytes_out\":{},\"duration_ms\":{}.{:03},\"retries\":{}}}",
            self.status,
            self.bytes_in,
            self.bytes_out,
            micros / 1_000,
            micros % 1_000,
            self.retries
        );
    }
}

/// Escapes text for a JSON string (RFC 8259, section 7).
fn escape(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            out.extend_from_slice(&bytes[from..at]);
            from = at + 1;
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                _ => drop(write!(out, "\\u{byte:04x}")),
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
}

/// The client's address as logs show it.
pub(crate) fn shown(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn escapes_what_json_must() {
        assert_eq!(text(|out| escape("a\"b\\c\u{1}\nd\u{e9}", out)), "a\\\"b\\\\c\\u0001\\u000ad\u{e9}");
    }

    #[test]
    fn writes_whole_lines_to_a_file_and_reopens_it() {
        let folder = std::env::temp_dir().join(format!("itsup-log-{}", std::process::id()));
        let path = folder.join("access.log");
        let (log, _thread) = AccessLog::start(AccessLogTarget::File(path.clone())).expect("start");
        let record = Record {
            at: UNIX_EPOCH,
            client: "192.0.2.1".parse().expect("address"),
            host: "a.test",
            method: "GET",
            path: "/x\"y",
            protocol: "h1",
            status: 200,
            bytes_in: 0,
            bytes_out: 5,
            took: Duration::from_micros(1_234),
            site: "shop",
            upstream: "shop/web",
            endpoint: "127.0.0.1:80",
            retries: 1,
            tls: "1.3",
            request_id: "abc",
            failed: "",
            why: "",
        };
        assert!(log.write(&record) && log.flush());
        log.sync();
        let first = std::fs::read_to_string(&path).expect("log");
        assert_eq!(
            first,
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"client\":\"192.0.2.1\",\"host\":\"a.test\",\"method\":\"GET\",\
             \"path\":\"/x\\\"y\",\"protocol\":\"h1\",\"tls\":\"1.3\",\"request_id\":\"abc\",\"site\":\"shop\",\
             \"upstream\":\"shop/web\",\"endpoint\":\"127.0.0.1:80\",\"status\":200,\"bytes_in\":0,\"bytes_out\":5,\
             \"duration_ms\":1.234,\"retries\":1}\n"
        );
        std::fs::rename(&path, folder.join("access.log.1")).expect("rotate");
        log.reopen();
        assert!(log.write(&record) && log.flush());
        log.sync();
        assert_eq!(std::fs::read_to_string(&path).expect("new log"), first);
        std::fs::remove_dir_all(&folder).expect("clean up");
    }
}
