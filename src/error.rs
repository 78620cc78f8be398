//! Errors. Each names what was wrong, what was found, and what to do about it.

/// Everything that can go wrong, comparable so that tests can state the exact error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that cannot be right on any device.
    #[error("{argument}: {found}; {remedy}")]
    Invalid {
        /// The argument, as the caller names it (`q`, `kv_len`, `scale` ...).
        argument: String,
        /// What was found there.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A request that this device, or this version, cannot serve.
    #[error("{what} is not supported here: {reason}; {remedy}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why it cannot be served.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// No adapter was found, or none that matches.
    #[error("no adapter: {found}; {remedy}")]
    NoAdapter {
        /// What was looked for and what was there.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A kernel that the shader stage or the driver refused. Always a bug: please report it.
    #[error("kernel {kernel} does not compile: {message}")]
    Compile {
        /// The stem of the kernel's file in `shaders/`.
        kernel: String,
        /// What the compiler said.
        message: String,
    },
    /// The device reported an error while it ran.
    #[error("device: {0}")]
    Device(String),
    /// A file that cannot be read or written, or that does not hold what it should.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What went wrong with it, and the remedy.
        message: String,
    },
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(
        argument: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            argument: argument.into(),
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(
        what: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            what: what.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// An [`Error::File`].
    pub fn file(path: impl AsRef<std::path::Path>, message: impl std::fmt::Display) -> Self {
        Self::File {
            path: path.as_ref().display().to_string(),
            message: message.to_string(),
        }
    }
}
