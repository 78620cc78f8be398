//! A worker process, with a limit on the time of every answer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

#[cfg(unix)]
use rustix::process::{Pid, Signal};

use crate::protocol::{Answer, Job, RUN, Ready};

/// Why a worker gave no number: the words of its row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// The peer is not set up.
    #[error("{0}")]
    Missing(String),
    /// The worker said that it cannot do it.
    #[error("{0}")]
    Failed(String),
    /// It did not answer, and was ended.
    #[error("no answer within {} s ({when}); ended", .limit.as_secs_f64())]
    Silent {
        /// What it was asked for.
        when: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It ended by itself.
    #[error("ended without an answer: {0}")]
    Died(String),
}

impl Trouble {
    /// Whether another start may help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Died(_))
    }
}

/// Lines kept of what a worker says on standard error.
const LAST_WORDS: usize = 40;

/// A worker that is ready to run its job. Dropped, its process is ended.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    last_words: Arc<Mutex<Vec<String>>>,
    /// Ends when nobody has the worker's standard error open any more.
    listener: JoinHandle<()>,
    ready: Ready,
}

impl Worker {
    /// Starts a worker on a job, and waits until it is ready.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn start(command: &mut Command, job: &Job, limit: Duration) -> Result<Self, Trouble> {
        let died = |error: &dyn std::fmt::Display| Trouble::Died(error.to_string());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Trouble::Missing(format!("cannot be started: {error}")))?;
        let (Some(requests), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(died(&"it has no pipes"));
        };
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in lines(stdout) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let last_words = Arc::<Mutex<Vec<String>>>::default();
        let kept = last_words.clone();
        let listener = thread::spawn(move || {
            for line in lines(stderr) {
                let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LAST_WORDS {
                    lines.remove(0);
                }
                lines.push(line);
            }
        });
        let mut worker = Self {
            child,
            requests,
            answers,
            last_words,
            listener,
            ready: Ready::default(),
        };
        let line = serde_json::to_string(job).map_err(|error| died(&error))?;
        match worker.ask(&line, "to get ready", limit)? {
            Answer::Ready(ready) => worker.ready = ready,
            other => return Err(Trouble::Failed(format!("got ready with {other:?}"))),
        }
        Ok(worker)
    }

    /// What it says of itself.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Stops the process until [`Worker::resume`], where the system has signals: libraries spin or
    /// poll while they wait, which slows the side that is timed.
    pub fn pause(&self) {
        #[cfg(unix)]
        self.signal(Signal::STOP);
    }

    /// Lets the process go on.
    pub fn resume(&self) {
        #[cfg(unix)]
        self.signal(Signal::CONT);
    }

    #[cfg(unix)]
    fn signal(&self, signal: Signal) {
        // It fails on a process that has ended, which the next run reports.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// One run, in ms.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn run(&mut self, limit: Duration) -> Result<f64, Trouble> {
        match self.ask(RUN, "to run", limit)? {
            Answer::Run { ms } if ms > 0.0 => Ok(ms),
            other => Err(Trouble::Failed(format!("a run gave {other:?}"))),
        }
    }

    fn ask(&mut self, line: &str, when: &'static str, limit: Duration) -> Result<Answer, Trouble> {
        let sent = writeln!(self.requests, "{line}").and_then(|()| self.requests.flush());
        if sent.is_err() {
            return Err(self.died());
        }
        match self.answers.recv_timeout(limit) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(Answer::Failed { failed, missing }) => Err(if missing {
                    Trouble::Missing(failed)
                } else {
                    Trouble::Failed(failed)
                }),
                Ok(answer) => Ok(answer),
                Err(_) => Err(Trouble::Failed(format!("its answer is no JSON: {text}"))),
            },
            Err(RecvTimeoutError::Timeout) => {
                // A late answer must not be taken for the next one.
                let _ = self.child.kill();
                Err(Trouble::Silent { when, limit })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.died()),
        }
    }

    /// How the process ended, with what it said last.
    fn died(&mut self) -> Trouble {
        // It may have closed its pipes and go on.
        let _ = self.child.kill();
        let status = self
            .child
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string());
        // Not for long: a process that the worker started may live on.
        for _ in 0..100 {
            if self.listener.is_finished() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let lines = self
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A panic says more than what follows it.
        let panic = lines.iter().position(|line| line.contains("panicked"));
        let said: Vec<&str> = match panic {
            Some(place) => lines
                .iter()
                .skip(place)
                .take(2)
                .map(String::as_str)
                .collect(),
            None => lines.iter().rev().take(1).map(String::as_str).collect(),
        };
        let said: String = said.join(" ").chars().take(300).collect();
        Trouble::Died(if said.is_empty() {
            status
        } else {
            format!("{status}; {said}")
        })
    }
}

/// The lines of a stream, whatever bytes are in them.
fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail on a process that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
