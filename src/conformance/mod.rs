//! Fixtures made by other people's code, run through the public API.
