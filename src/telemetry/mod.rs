//! What the server says about itself: log lines and figures.

mod metrics;
mod process;

pub use metrics::{Metrics, Transport};
use tracing_subscriber::{EnvFilter, fmt};

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
}

/// Starts writing log lines to standard error.
///
/// # Errors
/// The filter cannot be read, or logging was started before.
pub fn start(config: &LogConfig) -> Result<(), LogError> {
    let filter = EnvFilter::builder().parse(&config.level)?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match config.format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            tracing::subscriber::set_global_default(lines.with_ansi(terminal).finish())
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
            tracing::subscriber::set_global_default(lines.finish())
        }
    };
    started.map_err(|_| LogError::Started)
}
