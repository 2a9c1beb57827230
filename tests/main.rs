//! All integration tests, in one binary so that they link once.

#![allow(clippy::unwrap_used, missing_docs)]

mod architecture;
mod broker_contract;
mod chaos;
mod cli;
mod cluster;
mod control;
mod docs;
mod http_api;
mod log;
mod native;
mod recovery;
mod shutdown;
mod sse;
#[allow(dead_code)] // What one suite does not need, the next one does.
mod support;
mod terminal;
mod transcripts;
