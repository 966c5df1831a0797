//! t
use ekm_tests::patroni::Patroni;
use std::time::Instant;
fn main() {
    if let Err(e) = ekm_tests::namespaces::enter() { eprintln!("{e}"); std::process::exit(2) }
    let t = Instant::now();
    let mut p = Patroni::start();
    println!("up {:?} leader {:?}", t.elapsed(), p.leader());
    println!("{}", p.database.psql("create table t(n int); insert into t values (1); select n, inet_server_addr() from t"));
    let l = p.wait_healthy();
    let t = Instant::now();
    p.crash(l);
    while p.database.try_psql("insert into t values (2)").is_err() { std::thread::sleep(std::time::Duration::from_millis(100)); }
    println!("crash {:?} leader {:?}", t.elapsed(), p.leader());
    p.restart(l);
    let t = Instant::now();
    p.wait_healthy();
    println!("healthy {:?}", t.elapsed());
    let t = Instant::now();
    println!("{:?} {:?}", p.switchover(), t.elapsed());
    while p.database.try_psql("insert into t values (2)").is_err() { std::thread::sleep(std::time::Duration::from_millis(100)); }
    println!("switchover {:?} leader {:?}", t.elapsed(), p.leader());
    println!("{}", p.logs());
}
