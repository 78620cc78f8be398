//! A peer beside foveate on a task: one row, whatever happens.

use std::{fs, process::Command, time::Duration};

use foveate::bench::Workload;

use crate::{
    pairs::{Effort, Pairs, Side, measure},
    peer::Peer,
    report::{Both, Cause, Measured, Outcome, Row},
    task::Task,
    worker::{Trouble, Worker},
};

/// What foveate's own rows and files are called.
pub const OWN: &str = "foveate";
/// How long foveate may take to get ready: drivers compile meanwhile.
const OWN_LIMIT: Duration = Duration::from_secs(120);

/// foveate on a task, ready to be compared.
#[derive(Debug)]
pub struct Comparison<'a> {
    task: &'a Task,
    command: Command,
    own: Worker,
    own_err: f64,
    effort: Effort,
}

impl<'a> Comparison<'a> {
    /// Starts foveate's side.
    ///
    /// # Errors
    /// [`Trouble`] when it does not get ready.
    pub fn start(task: &'a Task, mut own: Command, effort: Effort) -> Result<Self, Trouble> {
        let (worker, own_err) = ready(task, &mut own)?;
        Ok(Self {
            task,
            command: own,
            own: worker,
            own_err,
            effort,
        })
    }

    /// Whether foveate's result is right.
    pub fn own_is_right(&self) -> bool {
        self.own_err <= self.task.err_limit()
    }

    /// Compares one variant of a peer, whose command may be the reason why there is none.
    pub fn row(&mut self, peer: &Peer, variant: &str, command: Result<Command, String>) -> Row {
        let dtype = self.task.workload.dtype();
        let outcome = match command {
            _ if !peer.dtypes.contains(&dtype) => {
                Outcome::failed(Cause::Peer, format!("its worker has no {dtype}"))
            }
            Err(reason) => Outcome::failed(Cause::Missing, reason),
            Ok(command) => self.try_often(peer, variant, command),
        };
        Row::new(&self.task.workload, peer, variant, outcome)
    }

    fn try_often(&mut self, peer: &Peer, variant: &str, mut command: Command) -> Outcome {
        let mut tries = 1;
        loop {
            let started = match tries {
                1 => String::new(),
                _ => format!("started {tries} times"),
            };
            let trouble = match self.once(peer, variant, &mut command) {
                Ok(mut measured) => {
                    measured.remark(&started);
                    return Outcome::Measured(Box::new(measured));
                }
                Err(Side::Own(trouble)) => {
                    // For the next row. Without success that one says the same.
                    if let Ok((worker, err)) = ready(self.task, &mut self.command) {
                        (self.own, self.own_err) = (worker, err);
                    }
                    return Outcome::failed(Cause::Foveate, format!("{OWN}: {trouble}"));
                }
                Err(Side::Peer(trouble)) => trouble,
            };
            if trouble.may_pass() && tries < peer.tries {
                tries += 1;
                continue;
            }
            let cause = match trouble {
                Trouble::Missing(_) => Cause::Missing,
                _ => Cause::Peer,
            };
            let words = match started.as_str() {
                "" => trouble.to_string(),
                started => format!("{trouble} ({started})"),
            };
            return Outcome::failed(cause, words);
        }
    }

    fn once(
        &mut self,
        peer: &Peer,
        variant: &str,
        command: &mut Command,
    ) -> Result<Measured, Side> {
        let job = self.task.job(&peer.name, variant);
        // A result of an earlier try must not count for this one. Mostly there is none.
        let _ = fs::remove_file(&job.output);
        let mut worker = Worker::start(command, &job, peer.ready_limit()).map_err(Side::Peer)?;
        let err = self.task.error(&job);
        let pairs = measure(&mut self.own, &mut worker, self.effort, peer.run_limit())?;
        Ok(self.measured(&worker, &pairs, err))
    }

    fn measured(&self, worker: &Worker, pairs: &Pairs, err: f64) -> Measured {
        let cost = &self.task.cost;
        let (foveate_ms, peer_ms) = (pairs.own.median, pairs.peer.median);
        let both = |foveate, peer| Both { foveate, peer };
        let ready = worker.ready();
        Measured {
            version: ready.version.clone(),
            device: ready.device.clone(),
            foveate_ms,
            peer_ms,
            ratio: pairs.ratio,
            gflops: both(cost.gflops(foveate_ms), cost.gflops(peer_ms)),
            gbps: both(cost.gbps(foveate_ms), cost.gbps(peer_ms)),
            err: both(self.own_err, err),
            foveate_note: self.own.ready().note.clone(),
            err_limit: self.task.err_limit(),
            right: err <= self.task.err_limit(),
            foveate_right: self.own_is_right(),
            copy_gbps: ready.copy_gbps,
            other_cores: pairs.other_cores,
            note: ready.note.clone(),
        }
    }
}

/// foveate's worker, ready, and the error of its result.
fn ready(task: &Task, command: &mut Command) -> Result<(Worker, f64), Trouble> {
    let job = task.job(OWN, OWN);
    let worker = Worker::start(command, &job, OWN_LIMIT)?;
    Ok((worker, task.error(&job)))
}

/// The row of a workload that foveate itself could not run.
pub fn own_failed(workload: &Workload, trouble: &Trouble) -> Row {
    Row::of_own(
        workload,
        Outcome::failed(Cause::Foveate, trouble.to_string()),
    )
}
