//! The pen: the right to write `data/` and to change containers, held while one does, and laid down for an upgrade.
//!
//! Whoever writes outside of [`crate::control`]'s own actor holds it for as long as the unit of work lasts that must not be cut in
//! two: a job, an order at a certificate authority, an edit of db.yml. It knows none of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The pen. Many may hold it at a time; a clone is the same pen.
#[derive(Clone, Debug, Default)]
pub struct Pen(Arc<RwLock<()>>);

/// Somebody writes; dropping it ends that.
#[derive(Debug)]
#[must_use = "dropped, the pen may be taken away in the middle of the work"]
pub struct Held(#[allow(dead_code, reason = "held, not read")] OwnedRwLockReadGuard<()>);

/// Nobody writes; dropping it lets them go on.
#[derive(Debug)]
pub struct LaidDown(#[allow(dead_code, reason = "held, not read")] OwnedRwLockWriteGuard<()>);

impl Pen {
    /// Takes it; waits while another process is about to take over.
    ///
    /// Never wait for somebody who takes it, too, while holding it: a process that is about to take over stands in between.
    pub async fn hold(&self) -> Held {
        Held(self.0.clone().read_owned().await)
    }

    /// Waits until nobody holds it and keeps others from taking it; `None` where that takes longer than `limit`.
    pub async fn lay_down(&self, limit: Duration) -> Option<LaidDown> {
        tokio::time::timeout(limit, self.0.clone().write_owned()).await.ok().map(LaidDown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_writes_is_waited_for_and_who_comes_later_waits() {
        let pen = Pen::default();
        let (first, second) = (pen.hold().await, pen.hold().await);
        assert!(pen.lay_down(Duration::from_secs(1)).await.is_none(), "two still write");
        drop((first, second));
        let down = pen.lay_down(Duration::from_secs(1)).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), pen.hold()).await.is_err(), "nobody may write");
        drop(down);
        let _held = pen.hold().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_given_up_holds_nobody_up() {
        let pen = Pen::default();
        let held = pen.hold().await;
        assert!(pen.lay_down(Duration::from_secs(1)).await.is_none());
        let _again = tokio::time::timeout(Duration::from_secs(1), pen.hold()).await.unwrap();
        drop(held);
    }
}
