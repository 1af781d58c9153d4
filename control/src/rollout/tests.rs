use std::time::Duration;

use proptest::prelude::*;

use super::world::{REPLICAS, Version, World, terms};
use super::*;
use crate::testing::container;

fn ids(names: &[&str]) -> Ids {
    names.iter().map(|name| (*name).into()).collect()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn one() -> Terms {
    Terms { replicas: 1, ..terms() }
}

/// A rollout of one container from `a` to `b`, begun and made at 0 s.
fn begun() -> Rollout {
    let mut rollout = Rollout::new(one(), ids(&["a"]), Ids::new());
    let commands = rollout.step(Event::Begin, seconds(0));
    assert_eq!(commands, [Command::Journal(Stage::Starting), Command::Start]);
    assert_eq!(rollout.step(Event::Started(Ok(())), seconds(0)), []);
    rollout
}

fn seen(change: impl FnOnce(&mut Container)) -> Event {
    let mut b = container("b", "shop", "shop-web");
    change(&mut b);
    Event::Seen(vec![container("a", "shop", "shop-web"), b])
}

fn answers() -> Event {
    Event::Probed { container: "b".into(), answered: true }
}

fn back() -> Vec<Command> {
    vec![Command::Journal(Stage::Undoing), Command::Publish(ids(&["a"])), Command::RemoveNew]
}

fn switched() -> Rollout {
    let mut rollout = begun();
    rollout.step(seen(|_| ()), seconds(1));
    let switch = [Command::Journal(Stage::Switched), Command::Publish(ids(&["b"]))];
    assert_eq!(rollout.step(answers(), seconds(1)), switch);
    assert_eq!(rollout.step(Event::Published(Ok(())), seconds(1)), []);
    assert!(rollout.is_watching());
    rollout
}

#[test]
fn ready_is_running_healthy_and_answering_and_then_it_switches_at_once() {
    for health in [Health::None, Health::Healthy] {
        let mut rollout = begun();
        assert_eq!(rollout.step(answers(), seconds(1)), [], "not seen yet");
        assert_eq!(rollout.step(seen(|b| b.health = health), seconds(1)), [], "a probe before it was seen is nobody's");
        assert_eq!(rollout.step(answers(), seconds(1)).len(), 2);
    }
    for change in [
        (|b: &mut Container| b.health = Health::Starting) as fn(&mut Container),
        |b| b.health = Health::Unhealthy,
        |b| (b.running, b.started_at) = (false, "0001-01-01T00:00:00Z".into()),
    ] {
        let mut rollout = begun();
        rollout.step(seen(change), seconds(1));
        assert_eq!(rollout.step(answers(), seconds(1)), []);
        // What was not ready becomes ready, with no further probe where the last one answered.
        assert_eq!(rollout.step(seen(|_| ()), seconds(2)).len() + rollout.step(answers(), seconds(2)).len(), 2);
    }
}

#[test]
fn nothing_switches_before_compose_is_done_and_all_are_there() {
    let mut rollout = Rollout::new(terms(), ids(&["a"]), ids(&["leaving"]));
    rollout.step(Event::Begin, seconds(0));
    let there = |names: &[&str]| Event::Seen(names.iter().map(|n| container(n, "shop", "shop-web")).collect());
    let all_answer = |rollout: &mut Rollout| -> Vec<Command> {
        let probed: Vec<ContainerId> = rollout.to_probe().cloned().collect();
        let probed = probed.into_iter().map(|container| Event::Probed { container, answered: true });
        probed.flat_map(|event| rollout.step(event, seconds(1))).collect()
    };
    rollout.step(there(&["a", "leaving", "b", "c"]), seconds(1));
    assert_eq!(all_answer(&mut rollout), [], "compose is still at it");
    rollout.step(Event::Started(Ok(())), seconds(1));
    assert_eq!(all_answer(&mut rollout).last(), Some(&Command::Publish(ids(&["b", "c"]))));

    let mut rollout = Rollout::new(terms(), ids(&["a"]), Ids::new());
    rollout.step(Event::Begin, seconds(0));
    rollout.step(Event::Started(Ok(())), seconds(0));
    rollout.step(there(&["a", "b"]), seconds(1));
    assert_eq!(all_answer(&mut rollout), [], "one of two");
    assert_eq!(rollout.step(there(&["a", "b", "c", "d"]), seconds(1)), [Command::Trim(ids(&["d"]))]);
    rollout.step(there(&["a", "b", "c", "d"]), seconds(1));
    assert_eq!(all_answer(&mut rollout).last(), Some(&Command::Publish(ids(&["b", "c"]))));
}

#[test]
fn what_fails_before_the_switch_is_undone_at_once() {
    let cases: [(Event, &str); 7] = [
        (Event::Started(Err("no such image".into())), "no such image"),
        (seen(|b| (b.running, b.exit_code) = (false, Some(3))), "ended with exit code 3 before it was ready"),
        (seen(|b| b.restart_count = 1), "before it was ready"),
        (seen(|b| (b.running, b.restarting) = (false, true)), "before it was ready"),
        (seen(|b| b.started_at = "2026-11-22T21:00:05Z".into()), "before it was ready"),
        (Event::Seen(vec![container("a", "shop", "shop-web")]), "before it was ready"),
        (Event::Cancelled, "cancelled"),
    ];
    for (event, why) in cases {
        let mut rollout = Rollout::new(one(), ids(&["a"]), Ids::new());
        rollout.step(Event::Begin, seconds(0));
        rollout.step(seen(|_| ()), seconds(1));
        assert_eq!(rollout.step(event.clone(), seconds(1)), back(), "{event:?}");
        assert!(rollout.failure().unwrap().to_string().contains(why), "{}", rollout.failure().unwrap());
        assert_eq!(rollout.step(Event::Published(Ok(())), seconds(1)), []);
        assert_eq!(rollout.step(Event::Removed, seconds(1)), []);
        assert!(matches!(rollout.ended(), Some(Ended::Undone(_))));
    }
}

#[test]
fn time_runs_out_and_what_is_missing_is_said() {
    for (change, missing) in [
        ((|b| b.health = Health::Unhealthy) as fn(&mut Container), "its health check fails"),
        (|b| b.health = Health::Starting, "its health check has not passed"),
        (|_| (), "it does not answer where the proxy would reach it"),
    ] {
        let mut rollout = begun();
        rollout.step(seen(change), seconds(1));
        assert_eq!(rollout.step(Event::Tick, seconds(4)), []);
        assert_eq!(rollout.wake_at(), Some(seconds(5)));
        assert_eq!(rollout.step(Event::Tick, seconds(5)), back());
        assert!(rollout.failure().unwrap().to_string().contains(missing), "{}", rollout.failure().unwrap());
    }
    let mut rollout = begun();
    rollout.step(Event::HealthBudget(seconds(30)), seconds(1));
    rollout.step(seen(|b| b.health = Health::Starting), seconds(29));
    assert_eq!(rollout.wake_at(), Some(seconds(30)), "a health check has its own time");
    let mut rollout = begun();
    assert_eq!(rollout.step(Event::Tick, seconds(5)), back());
    assert_eq!(rollout.failure(), Some(&Failure::TooFew { made: 0, wanted: 1 }));
}

#[test]
fn a_good_one_is_watched_and_then_the_old_ones_go() {
    let mut rollout = switched();
    assert_eq!(rollout.step(Event::Cancelled, seconds(2)), [], "too late");
    let tallied = |old, new| Event::Tallied { old, new };
    let good = Tally { served: 100, failed: 1 };
    assert_eq!(rollout.step(tallied(good, good), seconds(2)), []);
    assert_eq!(rollout.step(seen(|b| b.health = Health::Unhealthy), seconds(2)), [], "health weighs and does not kill");
    assert_eq!(rollout.step(Event::Tick, seconds(2)), []);
    assert_eq!(rollout.step(Event::Tick, seconds(3)), [Command::Commit]);
    assert_eq!(rollout.ended(), Some(&Ended::Done));
}

#[test]
fn a_bad_one_is_taken_back_within_the_watch() {
    let failing = Event::Tallied { old: Tally { served: 100, failed: 1 }, new: Tally { served: 20, failed: 9 } };
    for event in [seen(|b| b.running = false), seen(|b| b.restart_count = 1), failing] {
        assert_eq!(switched().step(event, seconds(2)), back());
    }
    let mut rollout = begun();
    rollout.step(seen(|_| ()), seconds(1));
    rollout.step(answers(), seconds(1));
    assert_eq!(rollout.step(Event::Published(Err("no address".into())), seconds(1)), back());
}

#[test]
fn where_no_old_one_runs_they_are_started_again() {
    let mut rollout = switched();
    let (mut a, mut b) = (container("a", "shop", "shop-web"), container("b", "shop", "shop-web"));
    (a.running, b.running) = (false, false);
    let commands = rollout.step(Event::Seen(vec![a, b]), seconds(2));
    assert_eq!(commands[1], Command::Revive(ids(&["a"])));
}

#[test]
fn an_engine_that_is_away_uses_up_nobody_s_time() {
    let mut rollout = begun();
    rollout.step(seen(|b| b.health = Health::Starting), seconds(1));
    rollout.step(Event::EngineAway, seconds(2));
    assert_eq!(rollout.wake_at(), None);
    assert_eq!(rollout.step(Event::Tick, seconds(60)), []);
    // The engine has started it again; that is no crash.
    let again = |b: &mut Container| (b.started_at, b.restart_count) = ("2026-11-22T22:00:00Z".into(), 1);
    assert_eq!(rollout.step(seen(again), seconds(60)), []);
    assert_eq!(rollout.wake_at(), Some(seconds(63)));
    assert_eq!(rollout.step(answers(), seconds(60)).len(), 2);
}

#[test]
fn worse_is_a_handful_of_failures_and_clearly_more_of_them() {
    for (old, new, worse) in [
        ((0, 0), (0, 0), false),
        ((100, 0), (100, 4), false),
        ((100, 0), (100, 5), false),
        ((100, 0), (100, 6), true),
        ((0, 0), (5, 5), true),
        ((100, 50), (100, 60), false),
        ((100, 10), (100, 20), false),
        ((100, 10), (100, 30), true),
    ] {
        let tally = |(served, failed)| Tally { served, failed };
        assert_eq!(clearly_worse(tally(old), tally(new)), worse, "{old:?} {new:?}");
    }
}

fn versions() -> impl Strategy<Value = Version> {
    prop_oneof![
        4 => Just(Version::Good),
        1 => Just(Version::NeverAnswers),
        1 => Just(Version::Unhealthy),
        1 => Just(Version::EndsAtStart),
        2 => (0..3_000u64).prop_map(Version::EndsAfter),
        1 => Just(Version::NotMade),
    ]
}

fn assert_settled(world: &World) {
    assert!(world.change.is_none() && world.retiring.is_empty(), "the journal is empty");
    let there: Ids = world.containers.keys().cloned().collect();
    assert_eq!(there, world.routed, "what is there is routed, and nothing is left over");
    assert_eq!(there.len(), REPLICAS);
    assert!(world.containers.values().all(|c| c.running || c.id.as_str().starts_with("new")));
}

#[test]
fn killed_after_any_single_thing_it_settles() {
    for version in [Version::Good, Version::NeverAnswers, Version::EndsAfter(1_000), Version::NotMade] {
        for kill_after in 0..20 {
            let mut world = World::new(version, Some(kill_after), (seconds(0), seconds(0)));
            world.run();
            assert_settled(&world);
        }
    }
}

proptest! {
    /// Whatever the new version is like, wherever the process is killed, whenever the engine is away: in the end there
    /// are as many as asked for, of one version, all routed; and traffic was never left with nobody.
    #[test]
    fn every_rollout_settles(
        version in versions(),
        kill_after in prop::option::of(0..20usize),
        away_from in 0..4_000u64,
        away_for in 0..10_000u64,
    ) {
        let away = (Duration::from_millis(away_from), Duration::from_millis(away_from + away_for));
        let mut world = World::new(version, kill_after, away);
        let ended = world.run();
        assert_settled(&world);
        if kill_after.is_none() {
            match version {
                Version::Good => prop_assert_eq!(ended, Some(Ended::Done)),
                Version::EndsAfter(_) => {}
                _ => prop_assert!(matches!(ended, Some(Ended::Undone(_)))),
            }
        }
    }
}
