//! What systemd is told (sd_notify(3)), and that it is told regularly that all is well. Without systemd nothing happens.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use itsup_proxy::Proxy;

/// The service manager listens, unless the machine is in trouble.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends lines of `NAME=value` to the service manager, where there is one.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!("NOTIFY_SOCKET: {error}");
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not listen must not hold us up.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A reload begins: what `Type=notify-reload` wants to hear.
pub(crate) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// How often the watchdog wants to hear from this process: half of its limit.
fn watchdog_interval(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let other = variable("WATCHDOG_PID").is_some_and(|text| text.parse() != Ok(pid));
    let limit = variable("WATCHDOG_USEC")?.parse::<u64>().ok().filter(|limit| *limit > 0 && !other)?;
    Some(Duration::from_micros(limit / 2))
}

/// Tells the watchdog, as often as it wants, that every data thread answers.
pub(crate) async fn watchdog(proxy: Proxy) {
    let Some(interval) = watchdog_interval(|name| std::env::var(name).ok(), std::process::id()) else { return };
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if proxy.is_alive(interval).await {
            notify("WATCHDOG=1");
        } else {
            tracing::error!("a data thread does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let variables = |usec: &'static str, pid: Option<&'static str>| {
            move |name: &str| match name {
                "WATCHDOG_USEC" => Some(usec.to_owned()),
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => None,
            }
        };
        assert_eq!(watchdog_interval(variables("30000000", Some("7")), 7), Some(Duration::from_secs(15)));
        assert_eq!(watchdog_interval(variables("30000000", None), 7), Some(Duration::from_secs(15)));
        assert_eq!(watchdog_interval(variables("30000000", Some("8")), 7), None);
        assert_eq!(watchdog_interval(variables("0", None), 7), None);
        assert_eq!(watchdog_interval(|_| None, 7), None);
    }

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let named = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let name = format!("itsup-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), "READY=1").unwrap();
        for socket in [named, hidden] {
            let mut text = [0; 16];
            let read = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..read], b"READY=1");
        }
    }
}
