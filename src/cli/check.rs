//! `fanwire check`: every fault of a configuration at once.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{DONE, FAULT, block_on, load, terminal};
use crate::{config::Flags, gateway::Gateway};

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The configuration file; environment variables (FANWIRE_…) go over it, as they will when it is served.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check it as `serve --insecure` would.
    #[arg(long)]
    insecure: bool,
}

pub(super) fn run(args: CheckArgs) -> ExitCode {
    match load(args.config, Flags { listen: Vec::new(), insecure: args.insecure }) {
        Ok((loaded, _)) => block_on(async move {
            // The keys themselves are read by the gateway: what it would not start with is a fault too.
            if let Err(error) = Gateway::new(&loaded.config, tokio::runtime::Handle::current()) {
                error.problems.iter().for_each(|problem| terminal::say(&format!("fault: {problem}")));
                return ExitCode::from(FAULT);
            }
            let mode = if loaded.config.is_development() { " (development mode: no app has a key)" } else { "" };
            // Nobody reads it if this fails; the exit code says the same.
            let _ = terminal::print(&format!("the configuration is good{mode}"));
            ExitCode::from(DONE)
        }),
        Err(code) => code,
    }
}
