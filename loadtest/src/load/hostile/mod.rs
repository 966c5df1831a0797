//! Clients that do what no good one does, in phases, and bounded in number and rate.
//!
//! Each entry of a scenario has a thread of its own, in which all its clients take turns. It goes behind all other threads of the
//! machine: what is measured is what such clients cost the service, not what it costs to be one.

mod churn;
mod client;
mod http2;
mod kind;
mod pace;
mod silent;
mod slow;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::thread::CpuSet;
use tokio::runtime::Builder;
use tokio::sync::Mutex;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::clock::thread_cpu;
use crate::cores;
use crate::faults::{Done, wait_until};
use crate::results::origin_s;
use crate::scenario::Scenario;
use crate::schedule::Schedule;
use crate::target::{Target, Tokens};
use client::{Client, add};
pub use kind::{Hostile, Kind};

/// Behind the service and whoever else works on the machine.
const NICE: i32 = 10;

/// Before it is over, so that the next phase does not have to see all of them go.
const LEAVE_EARLIER: Duration = Duration::from_millis(200);

/// All hostile clients of a scenario.
pub struct Plan {
    entries: Vec<Planned>,
    origin_s: f64,
}

struct Planned {
    hostile: Hostile,
    begins_s: f64,
    ends_s: f64,
    /// Whose key they ask for.
    key: String,
}

impl Plan {
    /// Of a scenario.
    pub fn new(scenario: &Scenario, schedule: &Schedule) -> Self {
        let key = scenario.keys[0].get_ref().path(0);
        let entries = scenario.hostile.iter().filter_map(|hostile| {
            let hostile = hostile.get_ref().clone();
            let phase = schedule.phases.iter().find(|phase| phase.is_measured && phase.name == hostile.phase)?;
            Some(Planned { hostile, begins_s: phase.begins_s, ends_s: phase.ends_s, key: key.clone() })
        });
        Self { entries: entries.collect(), origin_s: origin_s(schedule) }
    }

    /// Lets all of them come and go, until `ended`, on the generator's cores if it has its own. Says what came of it.
    pub fn run(
        &self,
        begun: Instant,
        target: &Arc<Target>,
        tokens: &Tokens,
        cores: Option<&CpuSet>,
        ended: &AtomicBool,
    ) -> Vec<Done> {
        // If that does not succeed, the generator has ended the run already.
        let _ = cores.map(cores::move_to);
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .entries
                .iter()
                .map(|planned| scope.spawn(|| self.one(planned, begun, target, tokens, ended)))
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().expect("it does not panic")).collect()
        })
    }

    fn one(
        &self,
        planned: &Planned,
        begun: Instant,
        target: &Target,
        tokens: &Tokens,
        ended: &AtomicBool,
    ) -> Option<Done> {
        if !wait_until(begun + Duration::from_secs_f64(planned.begins_s), ended) {
            return None;
        }
        let Planned { hostile, ends_s, key, .. } = planned;
        let since_origin = || begun.elapsed().as_secs_f64() - self.origin_s;
        let at_s = since_origin();
        let client = Rc::new(Client::new(target, hostile.frontend - 1, tokens, key, hostile.rate));
        let until = begun + Duration::from_secs_f64(*ends_s) - LEAVE_EARLIER;
        let outcome = attack(hostile, &client, until, ended);
        let seconds = since_origin() - at_s;
        let mut what = said(hostile, &client);
        if let Ok(cpu) = &outcome {
            what += &format!("; itself {:.0} % of a core", 100.0 * cpu.as_secs_f64() / seconds.max(1e-3));
        }
        let error = outcome.err().map(|error| format!("{error:#}"));
        Some(Done { what, at_s, until_s: Some(since_origin()), error })
    }
}

/// Until the time is over. Says what CPU time it took.
fn attack(hostile: &Hostile, client: &Rc<Client>, until: Instant, ended: &AtomicBool) -> Result<Duration> {
    // To go behind needs no right.
    rustix::process::nice(NICE)?;
    let cpu_before = thread_cpu();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut openings = interval(Duration::from_secs_f64(1.0 / hostile.opens_per_s));
        openings.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let openings = Rc::new(Mutex::new(openings));
        for _ in 0..hostile.connections {
            let (openings, client, kind) = (Rc::clone(&openings), Rc::clone(client), hostile.kind);
            tokio::task::spawn_local(async move {
                loop {
                    openings.lock().await.tick().await;
                    if one(kind, &client).await.is_err() {
                        add(&client.counts.failed, 1);
                    }
                }
            });
        }
        while Instant::now() < until && !ended.load(Ordering::Relaxed) {
            sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50))).await;
        }
    });
    drop(local);
    let opened = client.counts.opened.get();
    ensure!(opened > 0, "no connection could be opened");
    Ok(thread_cpu() - cpu_before)
}

/// One connection, from its beginning to its end.
async fn one(kind: Kind, client: &Client) -> std::io::Result<()> {
    match kind {
        Kind::Silent => silent::before_tls(client).await,
        Kind::SilentAfterTls => silent::after_tls(client).await,
        Kind::Idle => silent::after_an_answer(client).await,
        Kind::SlowHead => slow::head(client).await,
        Kind::SlowBody => slow::body(client).await,
        Kind::EndlessBody => slow::endless_body(client).await,
        Kind::SlowReader => slow::reader(client).await,
        Kind::Reset => churn::reset(client).await,
        Kind::ResetAfterTls => churn::reset_after_tls(client).await,
        Kind::Garbage => churn::garbage(client).await,
        Kind::Malformed => churn::malformed(client).await,
        Kind::H2RapidReset => http2::rapid_reset(client).await,
        Kind::H2MadeYouReset => http2::made_you_reset(client).await,
        Kind::H2Continuation => http2::continuation(client).await,
        Kind::H2Ping => http2::ping(client).await,
        Kind::H2Settings => http2::settings(client).await,
        Kind::H2EmptyData => http2::empty_data(client).await,
        Kind::H2ZeroWindow => http2::zero_window(client).await,
    }
}

fn said(hostile: &Hostile, client: &Client) -> String {
    let counts = &client.counts;
    let (opened, refused, pieces) = (counts.opened.get(), counts.refused.get(), counts.pieces.get());
    let mut text = format!("hostile clients, {}, at most {} at once: ", hostile.kind.name(), hostile.connections);
    text += &format!("{opened} connections opened");
    if refused > 0 {
        text += &format!(", {refused} refused");
    }
    text += &format!(", {} ended by the service", counts.failed.get().saturating_sub(refused));
    if pieces > 0 {
        text += &format!(", {pieces} pieces sent or read at {} a second on each", hostile.rate);
    }
    text
}
