//! Alternating runs of two workers: one of foveate, one of the peer, and so on, so that whatever
//! slows the machine for a while slows both.

use std::{
    thread,
    time::{Duration, Instant},
};

use foveate::bench::Spread;

use crate::{
    load::Meter,
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
/// Between two runs, for what a worker does when it wakes up.
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
    // One pair that does not count: a worker that waited long is not warm.
    one(own, peer, run_limit).map_err(Side::Own)?;
    one(peer, own, run_limit).map_err(Side::Peer)?;

    let meter = Meter::start(&[own.process(), peer.process()]);
    let start = Instant::now();
    let mut measured = Vec::new();
    while measured.len() < effort.pairs
        && (measured.len() < LEAST_PAIRS || start.elapsed() < effort.budget)
    {
        let own_ms = one(own, peer, run_limit).map_err(Side::Own)?;
        let peer_ms = one(peer, own, run_limit).map_err(Side::Peer)?;
        measured.push((own_ms, peer_ms));
    }
    summary(&measured)
        .map(|(own, peer, ratio)| Pairs {
            own,
            peer,
            ratio,
            other_cores: meter.other_cores(),
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

/// One run, in ms, while the other worker is stopped.
fn one(runs: &mut Worker, waits: &Worker, limit: Duration) -> Result<f64, Trouble> {
    waits.pause();
    runs.resume();
    thread::sleep(PAUSE);
    runs.run(limit)
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
