//! Fanwire, a real-time pub/sub server.
//!
//! The modules stand on shelves and import only from lower ones (`docs/architecture.md`; `tests/architecture.rs` holds
//! it). From the bottom: [`domain`] is the vocabulary; [`config`], [`protocol`] and [`wire`] are pure; [`telemetry`]
//! tells what happens; [`hub`] holds this node's connections, [`broker`] carries publications between nodes and
//! [`gateway`] is the door; [`node`] does what a command asks; [`session`] is one connection's conversation;
//! [`transport`] brings it frames; [`api`] serves the application's servers; [`http`] is the router; [`app`] puts everything together, and [`cli`] is the command
//! line.
//!
//! To follow one publication: [`node::Node::publish`], [`broker::Broker::publish`], [`node::Deliver`],
//! [`hub::Hub::fan_out`], [`hub::Shard::run`].

pub mod api;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod domain;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod node;
pub mod protocol;
pub mod session;
pub mod telemetry;
pub mod transport;
pub mod wire;
