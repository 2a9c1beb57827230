//! The command line: one binary, a subcommand for each thing that one does with it.
//!
//! `serve` is not run here, since the command line may not build the server: [`start`] hands its settings back to
//! `main`. Everything else is done when [`start`] returns.
//!
//! Results go to standard output, everything said about them to standard error. Exit codes: [`DONE`], [`FAULT`],
//! [`USAGE`], [`UNREACHED`].

mod check;
mod client;
mod config;
mod doctor;
mod publish;
mod subscribe;
mod terminal;
mod token;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Flags, Loaded, Sources};

/// It was done.
pub const DONE: u8 = 0;
/// There is a fault in what was given, or the server refused it.
pub const FAULT: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// No server was reached, or the connection was lost.
pub const UNREACHED: u8 = 3;

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 a fault or a refusal, 2 wrong usage, 3 no server reached or connection lost.";

/// What is left to do for `main`.
pub enum Start {
    /// Run the server.
    Serve(Box<Serve>),
    /// Nothing but to end with this code.
    Done(ExitCode),
}

/// What a server is run with.
pub struct Serve {
    /// The settings, checked.
    pub config: Config,
    /// Where they came from: on SIGHUP `Config::load(&sources)` reads them anew.
    pub sources: Sources,
}

/// Real-time pub/sub server: WebSocket and Server-Sent Events, from one binary.
#[derive(Parser)]
#[command(name = "fanwire", version, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve; what `fanwire` alone does too.
    Serve(ServeArgs),
    /// Tell every fault of a configuration at once.
    Check(check::CheckArgs),
    /// Print the whole effective configuration, commented, secrets masked.
    Config(config::ConfigArgs),
    /// Make a token for trying things, or say why one is refused.
    Token(token::TokenArgs),
    /// Publish to a channel of a running server.
    Publish(publish::PublishArgs),
    /// Print what is published to channels of a running server.
    Subscribe(subscribe::SubscribeArgs),
    /// Look at what bites in production.
    Doctor(doctor::DoctorArgs),
}

/// What `serve` takes. Without a file and without settings: development mode on 127.0.0.1:8080.
#[derive(Args)]
struct ServeArgs {
    /// The configuration file; environment variables (FANWIRE_…) go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, in place of `listen`; may be repeated.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Serve in development mode on any address: everybody who reaches it may do everything.
    #[arg(long)]
    insecure: bool,
}

/// Understands `args` (the program's name first) and does what they say, unless that is to serve.
pub fn start(args: impl IntoIterator<Item = OsString>) -> Start {
    let line = match CommandLine::try_parse_from(args) {
        Ok(line) => line,
        Err(error) => {
            // A closed pipe is no reason to complain about a help text.
            let _ = error.print();
            return Start::Done(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE)));
        }
    };
    Start::Done(match line.command.unwrap_or(Command::Serve(line.serve)) {
        Command::Serve(args) => match serve(args) {
            Ok(serve) => return Start::Serve(Box::new(serve)),
            Err(code) => code,
        },
        Command::Check(args) => check::run(args),
        Command::Config(args) => config::run(args),
        Command::Token(args) => token::run(args),
        Command::Publish(args) => publish::run(args),
        Command::Subscribe(args) => subscribe::run(args),
        Command::Doctor(args) => doctor::run(args),
    })
}

fn serve(args: ServeArgs) -> Result<Serve, ExitCode> {
    let flags = Flags { listen: args.listen, insecure: args.insecure };
    let (loaded, sources) = load(args.config, flags)?;
    Ok(Serve { config: loaded.config, sources })
}

/// Loads the configuration for a subcommand; warnings and faults are told on standard error.
fn load(file: Option<PathBuf>, flags: Flags) -> Result<(Loaded, Sources), ExitCode> {
    let sources = Sources::of_this_process(file, flags);
    match Config::load(&sources) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| terminal::say(&format!("warning: {warning}")));
            Ok((loaded, sources))
        }
        Err(errors) => {
            errors.0.iter().for_each(|fault| terminal::say(&format!("fault: {fault}")));
            Err(ExitCode::from(FAULT))
        }
    }
}

/// Runs `work` on a small runtime of its own.
fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // A thread that reads standard input may never come back; it must not hold up the end.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            terminal::say(&format!("cannot start: {error}"));
            ExitCode::from(FAULT)
        }
    }
}
