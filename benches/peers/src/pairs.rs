//! Alternating runs of two workers: one of foveate, one of the peer, and so on, so that whatever
//! slows the machine for a while slows both.

use std::{
    thread,
    time::{Duration, Instant},
};

use foveate::bench::Spread;

use crate::{
    load::{Meter, seconds_of},
    worker::{Trouble, Worker},
};

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Pairs wanted.
    pub pairs: usize,
    /// When runs are slow: no more pairs after this time, but never fewer than [`LEAST_PAIRS`].
    pub budget: Duration,
}

/// Fewer say nothing about spread.
pub const LEAST_PAIRS: usize = 5;
/// Between two runs: threads that spin after their work have gone to sleep by then.
const PAUSE: Duration = Duration::from_millis(20);

/// What the pairs gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// foveate, ms.
    pub own: Spread,
    /// The peer, ms.
    pub peer: Spread,
    /// The peer's time over foveate's, pair by pair.
    pub ratio: Spread,
    /// Cores that other processes kept busy, where that is known.
    pub other_cores: Option<f64>,
    /// Cores that the side which waited kept busy, where that is known.
    pub waiting_cores: Option<f64>,
}

/// Runs two workers in turn.
///
/// # Errors
/// Which of the two got into trouble, and what it was.
pub fn measure(
    own: &mut Worker,
    peer: &mut Worker,
    effort: Effort,
    run_limit: Duration,
) -> Result<Pairs, Side> {
    let processes = [own.process(), peer.process()];
    // One pair that does not count: a worker that waited long is not warm.
    one(own, peer.process(), run_limit).map_err(Side::Own)?;
    one(peer, processes[0], run_limit).map_err(Side::Peer)?;

    let meter = Meter::start(&processes);
    let start = Instant::now();
    let mut measured = Vec::new();
    let mut waiting = Some(0.0);
    while measured.len() < effort.pairs
        && (measured.len() < LEAST_PAIRS || start.elapsed() < effort.budget)
    {
        let (own_ms, peer_spun) = one(own, processes[1], run_limit).map_err(Side::Own)?;
        let (peer_ms, own_spun) = one(peer, processes[0], run_limit).map_err(Side::Peer)?;
        measured.push((own_ms, peer_ms));
        waiting = add(add(waiting, peer_spun), own_spun);
    }
    let busy: f64 = measured.iter().map(|(own, peer)| (own + peer) / 1e3).sum();
    summary(&measured)
        .map(|(own, peer, ratio)| Pairs {
            own,
            peer,
            ratio,
            other_cores: meter.other_cores(),
            waiting_cores: waiting.map(|seconds| seconds / busy),
        })
        .ok_or_else(|| Side::Peer(Trouble::Failed("no pair was asked for".into())))
}

/// The side that got into trouble.
#[derive(Debug, Clone, PartialEq)]
pub enum Side {
    /// foveate.
    Own(Trouble),
    /// The peer.
    Peer(Trouble),
}

/// One run after a pause: its ms, and the CPU seconds of the process that waited meanwhile.
fn one(worker: &mut Worker, waits: u32, limit: Duration) -> Result<(f64, Option<f64>), Trouble> {
    thread::sleep(PAUSE);
    let before = seconds_of(&[waits]);
    let ms = worker.run(limit)?;
    let spun = add(seconds_of(&[waits]), before.map(|seconds| -seconds));
    Ok((ms, spun))
}

fn add(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? + b?)
}

/// The spreads of foveate's times, the peer's, and of the ratio in each pair; `None` of no pairs.
pub fn summary(pairs: &[(f64, f64)]) -> Option<(Spread, Spread, Spread)> {
    let spread = |of: fn(&(f64, f64)) -> f64| Spread::of(pairs.iter().map(of).collect());
    Some((
        spread(|(own, _)| *own)?,
        spread(|(_, peer)| *peer)?,
        spread(|(own, peer)| peer / own)?,
    ))
}
