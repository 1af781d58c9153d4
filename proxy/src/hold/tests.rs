use std::future::{pending, ready};
use std::task::{Context, Waker};

use super::*;

const NAME: &str = "web/app";

fn holds() -> Arc<Holds> {
    Arc::default()
}

fn hold(holds: &Arc<Holds>, wait: Duration, most: u32) -> Hold {
    holds.hold(&NAME.into(), HoldLimits { wait, most })
}

async fn wait(holds: &Arc<Holds>) -> Waited {
    holds.door(NAME).expect("held").wait(pending()).await
}

/// Lets everyone who is ready run, as far as it gets.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_waits_where_nothing_is_held() {
    let holds = holds();
    assert!(!holds.any() && holds.door(NAME).is_none());
    let hold = hold(&holds, Duration::from_secs(60), 1);
    assert!(holds.any() && holds.door(NAME).is_some());
    assert!(holds.door("another").is_none());
    drop(hold);
    assert!(!holds.any() && holds.door(NAME).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_when_it_is_over_and_is_counted() {
    let holds = holds();
    let hold = hold(&holds, Duration::from_secs(60), 100);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let holds = holds.clone();
            tokio::spawn(async move { wait(&holds).await })
        })
        .collect();
    settle().await;
    assert_eq!((hold.held().waiting, hold.held().waited), (3, 3));
    let held = hold.release().await;
    assert_eq!((held.waiting, held.waited, held.refused, held.left), (0, 3, 0, 0));
    assert!(held.longest > Duration::ZERO);
    for waiting in waiting {
        assert_eq!(waiting.await.expect("joined"), Waited::Released);
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_and_too_long_are_refused() {
    let holds = holds();
    let hold = hold(&holds, Duration::from_secs(30), 1);
    let first = tokio::spawn({
        let holds = holds.clone();
        async move { wait(&holds).await }
    });
    settle().await;
    assert_eq!(wait(&holds).await, Waited::Refused, "one place is all there is");
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(first.await.expect("joined"), Waited::Refused);
    let held = hold.held();
    assert_eq!((held.waiting, held.waited, held.refused), (0, 1, 2));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let holds = holds();
    let hold = hold(&holds, Duration::from_secs(60), 1);
    for _ in 0..3 {
        let door = holds.door(NAME).expect("held");
        assert_eq!(door.wait(ready(())).await, Waited::Left);
    }
    // So does one whose task is dropped while it waits.
    {
        let door = holds.door(NAME).expect("held");
        let mut waiting = Box::pin(door.wait(pending()));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(hold.held().waiting, 1);
    }
    let held = hold.held();
    assert_eq!((held.waiting, held.waited, held.left), (0, 4, 3));
}

#[tokio::test]
async fn the_last_of_two_holds_lets_go() {
    let holds = holds();
    let (first, second) = (hold(&holds, Duration::from_secs(60), 10), hold(&holds, Duration::from_secs(1), 1));
    let waiting = tokio::spawn({
        let holds = holds.clone();
        async move { wait(&holds).await }
    });
    settle().await;
    assert_eq!(first.release().await.waiting, 1);
    assert!(!waiting.is_finished());
    drop(second);
    assert_eq!(waiting.await.expect("joined"), Waited::Released);
    assert!(!holds.any());
}

#[tokio::test]
async fn another_upstream_stays_held() {
    let holds = holds();
    let (one, other) = (hold(&holds, Duration::from_secs(60), 10), holds.hold(&"b".into(), HoldLimits::default()));
    drop(one);
    assert!(holds.door(NAME).is_none() && holds.door("b").is_some());
    drop(other);
    assert!(!holds.any());
}
