//! `fanwire config`: the effective configuration, the example file and the reference, all commented.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{DONE, load, terminal};
use crate::config::{Config, Flags};

#[derive(Args)]
pub(super) struct ConfigArgs {
    /// The configuration file; environment variables (FANWIRE_…) go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show it as `serve --insecure` would take it.
    #[arg(long)]
    insecure: bool,
    /// A complete commented file to start from, in place of the effective configuration.
    #[arg(long, conflicts_with = "config")]
    default: bool,
    /// The table of all keys in Markdown, as it stands in docs/configuration.md.
    #[arg(long, conflicts_with_all = ["config", "default"])]
    reference: bool,
}

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    let text = match (args.default, args.reference) {
        (true, _) => Config::example(),
        (_, true) => Config::reference(),
        _ => match load(args.config, Flags { listen: Vec::new(), insecure: args.insecure }) {
            Ok((loaded, _)) => loaded.config.commented(),
            Err(code) => return code,
        },
    };
    // Whoever closes the pipe has read enough.
    let _ = terminal::print(text.trim_end());
    ExitCode::from(DONE)
}
