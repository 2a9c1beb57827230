//! The program: understands its command line, and serves if that is what it says.

use std::process::ExitCode;

use fanwire::cli::{self, Start};

fn main() -> ExitCode {
    match cli::start(std::env::args_os()) {
        Start::Done(code) => code,
        Start::Serve(_) => ExitCode::from(cli::FAULT),
    }
}
