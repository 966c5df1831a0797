//! `--pin`: cores of the generator's own, as if it were on another machine. Else whoever sends and whoever answers wait for each other, and the
//! service is blamed for it.

use std::io;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Leaves this thread, and what it starts, all cores but the last ones, and returns these.
pub fn give_away(last: usize) -> Result<CpuSet> {
    let all = sched_getaffinity(None).context("sched_getaffinity")?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core)).collect();
    ensure!(
        cores.len() > last,
        "--pin: the generator's {last} threads would take all {} cores of this machine; run it without --pin",
        cores.len()
    );
    let (rest, given) = cores.split_at(cores.len() - last);
    move_to(&set(rest))?;
    Ok(set(given))
}

/// From now on this thread is on these cores.
pub fn move_to(cores: &CpuSet) -> io::Result<()> {
    Ok(sched_setaffinity(None, cores)?)
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    set
}
