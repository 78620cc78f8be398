//! `foveate run`

use std::process::ExitCode;

use super::Globals;
use crate::Result;

/// Arguments of `foveate run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, _globals: &Globals) -> Result<ExitCode> {
    Ok(ExitCode::FAILURE)
}
