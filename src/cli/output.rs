//! What the program prints. A reader that has seen enough (`foveate info | head -1`) is no error:
//! the rest is dropped, the work goes on, and the exit code says what came of it.

use std::io::{self, Write};

use serde::Serialize;

use crate::{Error, Result};

/// Prints a text and a newline.
pub(super) fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| Error::file("standard output", error)),
    }
}

/// Prints a value as one line of JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|error| Error::file("standard output", error))?;
    print(text)
}

/// Tells the user something that is not the result, on standard error.
pub(super) fn note(text: impl std::fmt::Display) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "foveate: {text}");
}
