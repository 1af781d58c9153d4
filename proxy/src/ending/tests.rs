use super::*;

fn relay(endpoint: u64) -> (Listed, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    (Listed::new(endpoint, Class::Passthrough, Way::Relay(told.clone())), told)
}

fn enders() -> Enders {
    let enders = Enders::default();
    tokio::task::spawn_local(obey(enders.join()));
    enders
}

async fn on_a_data_thread(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_an_order_names_is_told() {
    on_a_data_thread(async {
        let enders = enders();
        let ((mine, told), (other, _)) = (relay(1), relay(2));
        let stream = Listed::new(1, Class::Websocket, Way::Relay(Arc::default()));
        enders.end(&[1], &[Class::Passthrough], Duration::ZERO);
        told.notified().await;
        assert!(mine.is_told());
        assert!(!other.is_told() && !stream.is_told());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn ends_are_spread_and_latecomers_are_told_last() {
    on_a_data_thread(async {
        let enders = enders();
        let listed: Vec<_> = (0..10).map(|_| relay(7)).collect();
        let began = Instant::now();
        enders.end(&[7], &[Class::Passthrough], Duration::from_secs(10));
        let mut at = Vec::new();
        for (n, (_, told)) in listed.iter().enumerate() {
            told.notified().await;
            at.push(began.elapsed().as_secs());
            assert_eq!(listed.iter().filter(|(listed, _)| listed.is_told()).count(), n + 1);
        }
        assert_eq!(at, (0..10).collect::<Vec<_>>());
        let (late, told) = relay(7);
        told.notified().await;
        assert!(late.is_told());
        assert_eq!(began.elapsed().as_secs(), 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_used_again_is_not_told_for_the_one_before() {
    on_a_data_thread(async {
        let enders = enders();
        let (first, _) = relay(7);
        let (second, _) = relay(7);
        enders.end(&[7], &[Class::Passthrough], Duration::from_secs(10));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(first.is_told() && !second.is_told());
        drop(second);
        let (stays, _) = relay(8);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!stays.is_told());
    })
    .await;
}

#[test]
fn what_is_dropped_elsewhere_leaves_other_lists_alone() {
    let (here, _) = relay(1);
    let (there, _) = relay(1);
    std::thread::spawn(move || {
        let (own, _) = relay(2);
        drop(there);
        let still_listed = LIST.with_borrow_mut(|list| list.get(own.slot, own.serial).is_some());
        assert!(still_listed);
    })
    .join()
    .expect("joined");
    assert!(!here.is_told());
}
