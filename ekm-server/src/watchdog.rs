//! Ends the process when its runtime is stuck: it still accepts connections then, so that no load balancer without checks of its own would
//! notice, and nothing else would ever end it. Its supervisor starts it anew.

use std::sync::Weak;
use std::thread;
use std::time::Duration;

use crate::router::DataPlane;

/// How often it is looked at before it is too much. Counted, not timed: a process that was stopped as a whole has not been stuck.
const LOOKS: u32 = 10;

/// How long the last line may take.
const SAYING_SO: Duration = Duration::from_millis(200);

/// Watches until the service is gone.
pub fn start(plane: Weak<DataPlane>, patience: Duration) -> std::io::Result<()> {
    thread::Builder::new().name("watchdog".into()).spawn(move || watch(&plane, patience))?;
    Ok(())
}

fn watch(plane: &Weak<DataPlane>, patience: Duration) {
    let (mut last, mut still) = (0, 0);
    loop {
        thread::sleep(patience / LOOKS);
        let Some(beats) = plane.upgrade().map(|plane| plane.intake.beats()) else { return };
        still = if beats == last { still + 1 } else { 0 };
        last = beats;
        if still >= LOOKS {
            // By another thread: whoever is stuck may hold what a line of the log needs.
            let _ = thread::Builder::new().spawn(move || {
                tracing::error!(code = "runtime_stuck", "nothing has run for {patience:?}; ending, to be started anew");
            });
            thread::sleep(SAYING_SO);
            std::process::abort();
        }
    }
}
