//! Fanwire, a real-time pub/sub server.
//!
//! The modules stand on shelves and import only from lower ones (`docs/architecture.md`; `tests/architecture.rs` holds
//! it). From below: [`domain`] is the vocabulary.

pub mod broker;
pub mod cli;
pub mod config;
pub mod domain;
pub mod gateway;
pub mod hub;
pub mod node;
pub mod protocol;
pub mod telemetry;
pub mod wire;
