//! Places where a test may have the process killed: `ITSUP_FAULT=STEP` ends it there as `kill -9` would.
//!
//! The steps, in the order of a rollout: `journaled`, `starting` (compose is at it), `started`, `ready`,
//! `switched` (in the journal, not yet routed), `published`, `watched`, `committed`, `drained`, `stopped`, `removed`;
//! going back: `undoing`, `reverted`, `undone`; in place, beside those: `held`, `emptied` (before compose is at it), `released`. Nothing of it is in a release build.

/// Ends the process here where the test has asked for it.
#[cfg(debug_assertions)]
pub(super) fn point(step: &str) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    if std::env::var("ITSUP_FAULT").is_ok_and(|wanted| wanted == step) {
        // There is nothing to do about a kill that fails but to go on.
        let _ = kill(Pid::this(), Signal::SIGKILL);
        std::thread::park();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(super) fn point(_step: &str) {}
