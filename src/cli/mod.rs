//! The `foveate` program.
