//! The `foveate` program; see `foveate --help`.

fn main() -> std::process::ExitCode {
    foveate::cli::main()
}
