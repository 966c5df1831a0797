//! The rig itself: what other tests take for granted of real databases.

use ekm_tests::postgres::{self, Cluster, PgBouncer};

#[test]
fn a_database_is_reached_with_tls_and_a_password_only() {
    let database = postgres::database();
    let tls = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(database.psql(tls), "t|TLSv1.3");
    let plain = database.url().replace("sslmode=verify-full", "sslmode=disable");
    let mut wrong = database.clone();
    wrong.password = "wrong".into();
    assert!(wrong.try_psql("SELECT 1").unwrap_err().contains("password authentication failed"));
    let output =
        std::process::Command::new(postgres::programs().join("psql")).args([&plain, "-c", "SELECT 1"]).output();
    assert!(String::from_utf8_lossy(&output.unwrap().stderr).contains("no encryption"));
}

#[test]
fn a_follower_refuses_writes_and_listen_until_it_is_promoted() {
    let mut leader = Cluster::start_own();
    let database = leader.database();
    database.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    let follower = leader.follower();
    let copy = follower.showing(&database);
    database.psql("INSERT INTO t VALUES (2)");
    follower.catch_up_with(&leader);
    assert_eq!(copy.psql("SELECT sum(n) FROM t"), "3");
    assert!(copy.try_psql("INSERT INTO t VALUES (3)").unwrap_err().contains("read-only transaction"));
    assert!(copy.try_psql("LISTEN c").unwrap_err().contains("during recovery"));
    leader.kill();
    follower.promote();
    assert_eq!(copy.psql("LISTEN c; INSERT INTO t VALUES (3); SELECT sum(n) FROM t"), "6");
}

#[test]
fn a_killed_database_has_what_it_acknowledged_and_a_frozen_one_answers_later() {
    let mut cluster = Cluster::start_own();
    let database = cluster.database();
    database.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    cluster.kill();
    assert!(database.try_psql("SELECT 1").is_err());
    cluster.start();
    assert_eq!(database.psql("SELECT n FROM t"), "1");
    cluster.pause();
    let waiting = std::thread::spawn({
        let database = database.clone();
        move || database.psql("SELECT n FROM t")
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!waiting.is_finished());
    cluster.resume();
    assert_eq!(waiting.join().unwrap(), "1");
}

#[test]
fn pgbouncer_gives_each_transaction_any_connection() {
    let database = postgres::database();
    let bouncer = PgBouncer::before(&database);
    assert_eq!(bouncer.database.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1); SELECT n FROM t"), "1");
    assert!(database.dump().contains("COPY public.t"));
}
