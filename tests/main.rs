//! All integration tests, in one binary so that they link once.

#![allow(clippy::unwrap_used, missing_docs)]

mod architecture;
mod cli;
mod docs;
mod native;
#[allow(dead_code)] // What one suite does not need, the next one does.
mod support;
