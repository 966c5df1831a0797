//! What decides which site an address leads to: a route in the program's own namespace, and health checks that change it. It stands for
//! the daemon that announces a site's address, and for the health checks of Google's internal load balancer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::network::ip;
use super::replica::get;

/// Two checks decide, whichever way.
const CHECKS: i8 = 2;

/// How an address leads to the sites that are well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// To all of them.
    Spread,
    /// To the first of them.
    Prefer,
}

/// Watches until it is dropped.
pub(super) struct Router {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// For this address and these next hops, whose port 8080 is asked for `/readyz` so often.
    pub(super) fn start(address: &'static str, hops: Vec<String>, policy: Policy, interval: Duration) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        set(address, &hops.iter().collect::<Vec<_>>(), policy);
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || watch(address, &hops, policy, interval, &ended)
        });
        Self { ended, thread: Some(thread) }
    }
}

fn watch(address: &str, hops: &[String], policy: Policy, interval: Duration, ended: &AtomicBool) {
    // From -2, where a site is out, to 2, where it is in.
    let mut standing = vec![CHECKS; hops.len()];
    let mut used = vec![true; hops.len()];
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answers = thread::scope(|scope| {
            let asked = hops.iter().map(|hop| scope.spawn(move || get(&format!("{hop}:8080"), "/readyz", interval)));
            let asked: Vec<_> = asked.collect();
            asked.into_iter().map(|one| one.join().ok().flatten() == Some(200)).collect::<Vec<_>>()
        });
        let before = used.clone();
        for ((standing, used), well) in standing.iter_mut().zip(&mut used).zip(answers) {
            // One answer of the other kind begins to count anew.
            *standing = if well { (*standing).max(0) + 1 } else { (*standing).min(0) - 1 }.clamp(-CHECKS, CHECKS);
            match *standing {
                CHECKS => *used = true,
                standing if standing == -CHECKS => *used = false,
                _ => {}
            }
        }
        if used != before {
            let well: Vec<_> = hops.iter().zip(&used).filter(|(_, used)| **used).map(|(hop, _)| hop).collect();
            // If nobody is well, the checks may be what is wrong.
            set(address, &if well.is_empty() { hops.iter().collect() } else { well }, policy);
        }
        thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
}

fn set(address: &str, hops: &[&String], policy: Policy) {
    let count = if policy == Policy::Prefer { 1 } else { hops.len() };
    let ways: Vec<_> = hops.iter().take(count).map(|hop| format!("nexthop via {hop}")).collect();
    ip(&format!("route replace {address}/32 {}", ways.join(" ")));
}

impl Drop for Router {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
