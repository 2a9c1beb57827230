//! The native protocol over real sockets: a story for each row of `docs/protocol-native.md`.

mod access;
mod expiry;
mod frames;
mod framing;
mod handshake;
mod history;
mod limits;
mod noise;
mod opening;
mod presence;
mod publish;
mod recover;
mod shards;
mod slow;
mod subscribe;
mod tenants;
mod tls;
