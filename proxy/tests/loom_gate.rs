//! Models of the endpoint gate: the interleavings of lease, close, publish and drain.

mod sync {
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[allow(dead_code, unreachable_pub, reason = "the models use a part of it, and it is private here")]
#[path = "../src/endpoint/gate.rs"]
mod gate;

use std::future::poll_fn;

use gate::{Class, Gate};
use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

/// Every interleaving with up to three preemptions: nearly all known races need fewer, and CI stays quick.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

async fn empty(gate: &Gate) {
    poll_fn(|cx| gate.poll_empty(&Class::ALL, cx)).await;
}

/// What is drained is never used again: the container may be stopped.
#[test]
fn nothing_is_in_use_once_drained() {
    model(|| {
        let gate = Arc::new(Gate::new());
        let stopped = Arc::new(AtomicBool::new(false));
        let users: Vec<_> = (0..2)
            .map(|_| {
                let (gate, stopped) = (gate.clone(), stopped.clone());
                thread::spawn(move || {
                    if gate.enter(Class::Request) {
                        // Relaxed: only the gate's own ordering may make this hold.
                        assert!(!stopped.load(Ordering::Relaxed), "leased what was stopped");
                        gate.leave(Class::Request);
                    }
                })
            })
            .collect();
        gate.close();
        block_on(empty(&gate));
        stopped.store(true, Ordering::Relaxed);
        for user in users {
            user.join().unwrap();
        }
        assert!(!gate.enter(Class::Request));
        assert_eq!(gate.counts().total(), 0);
    });
}

/// New snapshot first, close second: whoever is turned away finds the new endpoint at the next look.
#[test]
fn turned_away_means_the_new_snapshot_is_there() {
    model(|| {
        let gates = Arc::new([Gate::new(), Gate::new()]);
        let live = Arc::new(AtomicUsize::new(0));
        let publisher = {
            let (gates, live) = (gates.clone(), live.clone());
            thread::spawn(move || {
                live.store(1, Ordering::Release);
                gates[0].close();
            })
        };
        let first = live.load(Ordering::Acquire);
        if !gates[first].enter(Class::Request) {
            let second = live.load(Ordering::Acquire);
            assert_eq!(second, 1, "closed before the new one was stored");
            assert!(gates[second].enter(Class::Request), "the new one must be open");
        }
        publisher.join().unwrap();
    });
}

/// The last one out always wakes the waiter; loom reports a lost wake-up as a deadlock.
#[test]
fn the_last_one_out_wakes_the_waiter() {
    model(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter(Class::Request));
        assert!(gate.enter(Class::Passthrough));
        gate.close();
        let leavers: Vec<_> = [Class::Request, Class::Passthrough]
            .into_iter()
            .map(|class| {
                let gate = gate.clone();
                thread::spawn(move || gate.leave(class))
            })
            .collect();
        block_on(empty(&gate));
        assert_eq!(gate.counts().total(), 0);
        for leaver in leavers {
            leaver.join().unwrap();
        }
    });
}

/// Two that wait are both woken.
#[test]
fn every_waiter_is_woken() {
    model(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter(Class::Request));
        gate.close();
        let other = {
            let gate = gate.clone();
            thread::spawn(move || block_on(empty(&gate)))
        };
        let leaver = {
            let gate = gate.clone();
            thread::spawn(move || gate.leave(Class::Request))
        };
        block_on(empty(&gate));
        other.join().unwrap();
        leaver.join().unwrap();
    });
}

/// A request that becomes a websocket is counted throughout, and a waiter for requests alone is woken by it.
#[test]
fn a_change_of_class_is_never_uncounted() {
    model(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter(Class::Request));
        let upgraded = {
            let gate = gate.clone();
            thread::spawn(move || {
                assert_eq!(gate.change(Class::Request, Class::Websocket), Class::Websocket);
            })
        };
        gate.close();
        assert_eq!(gate.counts().total(), 1);
        block_on(poll_fn(|cx| gate.poll_empty(&[Class::Request], cx)));
        assert_eq!(gate.counts().of(Class::Websocket), 1);
        upgraded.join().unwrap();
        gate.leave(Class::Websocket);
        block_on(empty(&gate));
    });
}

/// A request that has become a stream holds up who waits for streams as well, and nobody who waits for requests alone.
#[test]
fn a_stream_is_waited_for_by_its_class() {
    model(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter(Class::Request));
        let streaming = {
            let gate = gate.clone();
            thread::spawn(move || {
                let class = gate.change(Class::Request, Class::Stream);
                assert_eq!(class, Class::Stream);
                gate.leave(class);
            })
        };
        gate.close();
        block_on(poll_fn(|cx| gate.poll_empty(&[Class::Request], cx)));
        // No request can come back: who waits for what is long now waits for all that is left.
        block_on(poll_fn(|cx| gate.poll_empty(&Class::LONG, cx)));
        assert_eq!(gate.counts().total(), 0);
        streaming.join().unwrap();
    });
}

/// A waiter that comes before the close is woken by it where nothing is inside.
#[test]
fn closing_an_idle_gate_wakes_the_waiter() {
    model(|| {
        let gate = Arc::new(Gate::new());
        let closer = {
            let gate = gate.clone();
            thread::spawn(move || {
                gate.close();
            })
        };
        block_on(empty(&gate));
        closer.join().unwrap();
    });
}
