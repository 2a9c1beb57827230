//! The program: understands its command line, and serves if that is what it says.

use std::process::ExitCode;

use fanwire::{
    app::App,
    cli::{self, Serve, Start},
    telemetry,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::start(std::env::args_os()) {
        Start::Done(code) => code,
        Start::Serve(serve) => run(*serve).map_or_else(
            |error| {
                eprintln!("{error}");
                ExitCode::from(cli::FAULT)
            },
            |()| ExitCode::from(cli::DONE),
        ),
    }
}

fn run(serve: Serve) -> Result<(), Box<dyn std::error::Error>> {
    telemetry::start(&serve.config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let app = App::start(serve.config).await?;
        println!("listening on {:?}", app.addresses());
        tokio::signal::ctrl_c().await?;
        app.shut_down().await;
        Ok(())
    })
}
