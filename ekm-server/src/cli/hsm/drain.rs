//! `ekm hsm drain --wait`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::super::change::Session;
use super::super::error::CliError;
use super::super::output::{escape, print};
use super::hsm;
use crate::admin::api::ReplicaView;
use crate::process::Output;

/// How long `--wait` waits. Operations end within milliseconds; a frontend that does not follow the catalog goes on sending them.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the frontend that answers sends a replica nothing any more, and nobody waits for anything from it.
pub(super) async fn wait_until_idle(session: &Session, name: &str) -> Result<(), CliError> {
    let (begun, terminal) = (Instant::now(), std::io::stderr().is_terminal());
    let mut told = false;
    loop {
        let hsm = hsm(session).await?;
        let found = hsm.replicas.iter().find(|replica| replica.name == name);
        let where_ = format!("on {} (instance {})", escape(&hsm.frontend), escape(&hsm.instance));
        let left = found.and_then(left);
        if told && terminal {
            eprint!("\r\u{1b}[K");
        }
        let Some(left) = left else {
            if let Output::Text = session.output {
                print(&format!("{}: nothing is under way {where_}", escape(name)));
            }
            return Ok(());
        };
        if begun.elapsed() > DRAIN_PATIENCE {
            return Err(CliError::Draining(format!(
                "{} is still in use {where_} after {} s: {left}; it stays marked as drained, and 'ekm hsm status' shows how it goes on",
                escape(name),
                DRAIN_PATIENCE.as_secs()
            )));
        }
        if terminal {
            eprint!("{} {where_}: {left}", escape(name));
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Why a replica is not idle yet.
fn left(replica: &ReplicaView) -> Option<String> {
    match (replica.state.as_str(), replica.in_flight) {
        ("drained" | "refused", 0) => None,
        ("drained" | "refused", count) => Some(format!("{count} operations are under way")),
        (state, _) => Some(format!("it is {} yet", escape(state))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::replica;
    use super::*;

    #[test]
    fn a_replica_is_idle_when_it_gets_nothing_new_and_has_nothing_left() {
        assert_eq!(left(&replica("drained", 0)), None);
        assert_eq!(left(&replica("refused", 0)), None, "nothing is sent to it either");
        assert_eq!(left(&replica("drained", 2)), Some("2 operations are under way".into()));
        assert_eq!(left(&replica("serving", 0)), Some("it is serving yet".into()), "the frontend has not heard of it");
    }
}
