//! Several aggregators on one database: the stream goes on with another, and nothing is lost or stored twice.

use super::*;

/// Two servers that have one store, as two aggregators have one database.
async fn two() -> (Arc<Mutex<Store>>, Vec<SocketAddr>, Vec<tokio::task::JoinHandle<()>>) {
    let store = Arc::new(Mutex::new(Store::default()));
    let (mut addresses, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        servers.push(serve(listener, &store));
    }
    (store, addresses, servers)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_ends_the_stream_goes_on_with_the_next() {
    let (store, addresses, _servers) = two().await;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(dir.path().to_owned(), store, addresses.clone());
    rig.until("connected", |rig| rig.store.lock().hellos.len() == 1).await;
    let mut seen = vec![rig.link.target()];
    let mut port = 0;
    for round in 1..=4 {
        // Some are stored without an ack, one is not stored, and then the aggregator goes.
        rig.store.lock().script = [Answer::Keep, Answer::Keep, Answer::Break].into();
        for _ in 0..6 {
            port += 1;
            rig.event(port).await;
        }
        rig.until("moved", |rig| rig.store.lock().hellos.len() > round).await;
        rig.until("stored", |rig| rig.stored_ports().len() == usize::from(port))
            .await;
        seen.push(rig.link.target());
    }
    assert_eq!(rig.stored_ports(), (1..=24).collect::<Vec<_>>());
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
    let mut expected: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
    expected.sort();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_not_there_is_passed_over_also_by_a_collector_that_was_killed() {
    let (store, mut addresses, _servers) = two().await;
    // Bound and let go of: nobody listens there.
    addresses[0] = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(dir.path().to_owned(), store, addresses);
    rig.event(1).await;
    rig.until("stored", |rig| rig.stored_ports() == [1]).await;
    rig.kill().await;
    rig.addresses.reverse();
    rig.start();
    rig.event(2).await;
    rig.until("stored", |rig| rig.stored_ports() == [1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_spread_over_the_list() {
    let (store, addresses, _servers) = two().await;
    let targets: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
    let mut begun = std::collections::BTreeSet::new();
    for node in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let (spool, recovery) = Spool::open(dir.path(), 1 << 20, "boot").unwrap();
        let spool = Arc::new(spool);
        let index = Arc::new(PodIndex::default());
        let (writer, shipper) = Writer::start(Arc::clone(&spool), index, Arc::default(), recovery).unwrap();
        let hello = Hello {
            node: format!("node-{node}"),
            ..Hello::default()
        };
        let link = Arc::new(Link::default());
        let client = Client::new(&targets, hello, spool, Arc::clone(&link), shipper).unwrap();
        let (end, ends) = shutdown::channel();
        let before = store.lock().hellos.len();
        let client = tokio::spawn(client.run(ends));
        while store.lock().hellos.len() == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        begun.insert(link.target());
        end.fire();
        client.await.unwrap();
        tokio::task::spawn_blocking(move || writer.stop()).await.unwrap();
    }
    assert_eq!(begun.len(), 2);
}
