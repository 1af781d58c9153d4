use super::*;
use proptest::prelude::*;

const NOW: Unix = 1_800_000_000;

fn life(days: u64) -> Life {
    Life { not_before: NOW, not_after: NOW + days * DAY }
}

fn window(start: Unix, end: Unix) -> Window {
    Window { certificate: "a.b".into(), start, end }
}

#[test]
fn renewals_are_at_about_two_thirds_of_every_life() {
    for days in [6, 7, 45, 64, 90] {
        let mut seen = BTreeSet::new();
        for host in 0..200 {
            let at = renew_at(life(days), None, host) - NOW;
            let part = at as f64 / (days * DAY) as f64;
            assert!((0.64..0.70).contains(&part), "{days} days: {part}");
            seen.insert(at);
        }
        assert!(seen.len() > 150, "hosts do not come together: {}", seen.len());
    }
}

#[test]
fn the_cas_window_counts_where_there_is_one() {
    let (start, end) = (NOW + 10 * DAY, NOW + 12 * DAY);
    for host in 0..100 {
        let at = renew_at(life(90), Some(&window(start, end)), host);
        assert!((start..end).contains(&at));
        assert_eq!(at, renew_at(life(90), Some(&window(start, end)), host), "it does not move");
    }
    assert_eq!(renew_at(life(90), Some(&window(NOW - 5, NOW - 5)), 1), NOW - 5, "the past means now");
    assert_eq!(renew_at(life(90), Some(&window(NOW + 200 * DAY, NOW + 300 * DAY)), 1), NOW + 81 * DAY, "not too late");
}

#[test]
fn waits_double_and_end() {
    let mut record = Record::default();
    let mut waits = Vec::new();
    for _ in 0..14 {
        record.fail(NOW, "no".into(), None, 7);
        waits.push(record.back_off_ends(NOW).unwrap() - NOW);
    }
    assert!((45..=75).contains(&waits[0]), "{waits:?}");
    assert!((90..=150).contains(&waits[1]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST_BACK_OFF * 5 / 4), "{waits:?}");
    assert!(waits[13] >= LONGEST_BACK_OFF * 3 / 4, "{waits:?}");
    assert_eq!(record.if_asked(NOW), NOW, "who asks for it need not wait");
    record.succeed();
    assert_eq!(record.next_try(NOW, NOW), NOW);
}

#[test]
fn the_cas_wait_is_kept_and_bounded() {
    let mut record = Record::default();
    record.fail(NOW, "rate".into(), Some(Duration::from_secs(9000)), 7);
    assert_eq!((record.next_try(NOW, NOW), record.if_asked(NOW)), (NOW + 9001, NOW + 9001));
    record.fail(NOW, "rate".into(), Some(Duration::from_secs(u64::MAX)), 7);
    assert_eq!(record.next_try(NOW, NOW), NOW + LONGEST_WAIT);
}

#[test]
fn a_clock_that_goes_back_strands_nobody() {
    let mut record = Record::default();
    for _ in 0..TRIES_AN_HOUR {
        record.begin(NOW);
    }
    record.fail(NOW, "no".into(), None, 7);
    assert!(record.next_try(NOW, NOW) > NOW);
    assert_eq!(record.next_try(0, NOW - 30 * DAY), NOW - 30 * DAY);
    assert_eq!(record.next_try(NOW, NOW + 30 * DAY), NOW + 30 * DAY);
}

#[test]
fn a_record_survives_a_restart_and_an_old_one_is_read() {
    let mut record = Record { proof: Some(Proof::TlsAlpn), ..Record::default() };
    record.begin(NOW);
    record.fail(NOW, "why".into(), None, 3);
    record.split_off.insert("www.example.com".into());
    record.window = Some(window(1, 2));
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains("tls-alpn-01"), "{text}");
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    assert_eq!(serde_json::from_str::<Record>("{}").unwrap(), Record::default());
}

proptest! {
    /// Whatever fails when, and however long anyone asks to wait: never more than five tries in any hour.
    #[test]
    fn five_tries_an_hour(steps in prop::collection::vec((0u64..4000, any::<bool>(), 0u64..600), 1..60)) {
        let mut record = Record::default();
        let (mut now, mut tries) = (NOW, Vec::new());
        for (pause, works, retry_after) in steps {
            now += pause;
            if record.next_try(NOW, now) > now {
                continue;
            }
            record.begin(now);
            tries.push(now);
            if works {
                record.succeed();
            } else {
                record.fail(now, "no".into(), Some(Duration::from_secs(retry_after)), 1);
            }
        }
        for (index, first) in tries.iter().enumerate() {
            prop_assert!(tries[index..].iter().filter(|at| **at < first + HOUR).count() <= TRIES_AN_HOUR);
        }
    }
}
