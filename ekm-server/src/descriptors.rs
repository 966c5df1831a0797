//! Room for connections: each is a file descriptor, and most systems start a program with 1024, though they would allow more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For all that is no connection of a caller's: files, HSM workers, the database, administrators, probes.
const OTHERS: u64 = 256;

/// Raises the limit as far as connections need it and the system allows. No further: libraries that call select(2), as a vendor's in this
/// process may, cannot use a descriptor above 1023, and never meet one while there are few connections.
pub fn make_room(max_connections: usize) {
    let needed = OTHERS + max_connections as u64;
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "limits.max_connections is more than the limit of open files has room for: raise that (LimitNOFILE in systemd), or lower \
             max_connections; else silent clients can keep others out"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_for_connections_and_never_lowered() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        // Enough for the other tests in this process.
        setrlimit(Resource::Nofile, Rlimit { current: Some(900), maximum }).unwrap();
        make_room(100);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(900));
        make_room(2000);
        let expected = maximum.map_or(2256, |maximum| maximum.min(2256));
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: Some(expected), maximum });
    }
}
