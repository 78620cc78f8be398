//! Who kept the processor busy while something was timed: machine-wide from /proc/stat, which only
//! Linux has; elsewhere nothing is known.

use std::{fs, time::Instant};

/// Ticks per second of the times in /proc: the same on every Linux.
const TICKS: f64 = 100.0;

/// CPU seconds that all processes of this machine have taken.
fn machine_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let mut fields = text.lines().next()?.split_whitespace().skip(1);
    let mut next = || fields.next()?.parse::<f64>().ok();
    let (user, nice, system, _idle, _wait) = (next()?, next()?, next()?, next()?, next()?);
    let (irq, soft_irq, steal) = (next()?, next()?, next()?);
    Some((user + nice + system + irq + soft_irq + steal) / TICKS)
}

/// CPU seconds that a process has taken.
fn process_seconds(process: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS)
}

/// CPU seconds of some processes.
fn seconds_of(processes: &[u32]) -> Option<f64> {
    processes
        .iter()
        .map(|&process| process_seconds(process))
        .sum()
}

/// Looks at the machine from now on.
#[derive(Debug)]
pub struct Meter {
    since: Instant,
    own: Vec<u32>,
    before: Option<f64>,
}

impl Meter {
    /// Starts; `own` are the processes that may be busy, besides this one.
    pub fn start(own: &[u32]) -> Self {
        let mut own = own.to_vec();
        own.push(std::process::id());
        Self {
            since: Instant::now(),
            before: others(&own),
            own,
        }
    }

    /// How many cores other processes kept busy, on average.
    pub fn other_cores(&self) -> Option<f64> {
        let taken = others(&self.own)? - self.before?;
        Some((taken / self.since.elapsed().as_secs_f64()).max(0.0))
    }
}

fn others(own: &[u32]) -> Option<f64> {
    Some(machine_seconds()? - seconds_of(own)?)
}
