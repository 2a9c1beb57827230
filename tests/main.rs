//! All integration tests, in one binary so that they link once.

#![allow(clippy::unwrap_used, missing_docs)]

mod architecture;
mod cli;
