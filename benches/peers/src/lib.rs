//! foveate beside other implementations of attention: on the same device, in the same run, timed the
//! same way. See README.md for what is compared and how, and for the protocol of the workers.
//!
//! | module | what it is |
//! |---|---|
//! | [`peer`] | who is compared, as `peers.toml` says, and how each is started |
//! | [`protocol`] | what is said to a worker, and what it answers |
//! | [`worker`] | a worker process, with a limit on the time of every answer |
//! | [`own`] | foveate's own worker |
//! | [`task`] | a workload with its input files and the right result |
//! | [`compare`] | a peer beside foveate on a task: one row |
//! | [`pairs`] | alternating runs of two workers |
//! | [`load`] | who kept the processor busy meanwhile |
//! | [`report`] | rows, the table, and the best peer |
#![deny(missing_docs)]

pub mod compare;
pub mod load;
pub mod own;
pub mod pairs;
pub mod peer;
pub mod protocol;
pub mod report;
pub mod task;
pub mod worker;

/// What stops the comparison, as opposed to what becomes a row of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// foveate's own error.
    #[error(transparent)]
    Foveate(#[from] foveate::Error),
    /// A file of the comparison's own.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What went wrong with it, and the remedy.
        message: String,
    },
    /// An argument that cannot be right.
    #[error("{argument}: {message}")]
    Argument {
        /// The argument.
        argument: &'static str,
        /// What was found, and the remedy.
        message: String,
    },
    /// A worker that was spoken to in words it does not know.
    #[error("protocol: {0}")]
    Protocol(String),
}

impl Error {
    pub(crate) fn file(path: &std::path::Path, message: impl std::fmt::Display) -> Self {
        Self::File {
            path: path.display().to_string(),
            message: message.to_string(),
        }
    }
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
