//! `foveate info`

use std::process::ExitCode;

use super::Globals;
use crate::Result;

/// Arguments of `foveate info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, _globals: &Globals) -> Result<ExitCode> {
    Ok(ExitCode::FAILURE)
}
