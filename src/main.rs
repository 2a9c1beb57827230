//! The program: understands its command line, and serves if that is what it says.

use std::process::ExitCode;

use fanwire::{
    app,
    cli::{self, Serve, Start},
    telemetry,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::start(std::env::args_os()) {
        Start::Done(code) => code,
        Start::Serve(serve) => match serve_until_told(&serve) {
            Ok(()) => ExitCode::from(cli::DONE),
            Err(error) => {
                eprintln!("fanwire: {error}");
                ExitCode::from(cli::FAULT)
            }
        },
    }
}

fn serve_until_told(serve: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let log = telemetry::start(&serve.config.log)?;
    Ok(app::run(serve.config.clone(), &serve.sources, &log)?)
}
