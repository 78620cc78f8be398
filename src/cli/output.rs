//! What the program prints and writes. A reader that has seen enough (`foveate info | head -1`) is no error:
//! the rest is dropped, the work goes on, and the exit code says what came of it.

use std::{
    io::{self, Write},
    path::Path,
};

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

/// Checks, before any work is done, that a file can lie where the argument `flag` says.
pub(super) fn check_place(file: &Path, flag: &str) -> Result<()> {
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    if folder.is_some_and(|folder| !folder.is_dir()) {
        return Err(Error::file(
            file,
            format!("there is no such folder; make it, or name another file with {flag}"),
        ));
    }
    if file.is_dir() {
        return Err(Error::file(
            file,
            format!("is a folder; name a file with {flag}"),
        ));
    }
    Ok(())
}
