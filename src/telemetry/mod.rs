//! What the server says about itself: log lines and figures.

mod lines;
mod metrics;
mod process;

use std::{io, sync::Arc};

pub use lines::Log;
pub use metrics::{Metrics, Transport};
use tracing_subscriber::{EnvFilter, fmt};

use self::lines::Lines;
use crate::config::{LogConfig, LogFormat};

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("log.level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something else in this process logs already.
    #[error("logging has been started already")]
    Started,
    /// There is no thread to write them.
    #[error("the log's thread could not be started")]
    Thread(#[from] io::Error),
}

/// Starts writing log lines to standard error. Keep what is returned until the process ends, so that the last lines are
/// out by then.
///
/// # Errors
/// The filter cannot be read, logging was started before, or there is no thread for it.
pub fn start(config: &LogConfig) -> Result<Log, LogError> {
    let filter = EnvFilter::builder().parse(&config.level)?;
    let (writer, log) = Lines::start(io::stderr())?;
    let lines = fmt().with_env_filter(filter).with_writer(Arc::new(writer)).with_target(false);
    let started = match config.format {
        LogFormat::Text => {
            let terminal = io::IsTerminal::is_terminal(&io::stderr());
            tracing::subscriber::set_global_default(lines.with_ansi(terminal).finish())
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
            tracing::subscriber::set_global_default(lines.finish())
        }
    };
    started.map_err(|_| LogError::Started)?;
    Ok(log)
}
