//! The native protocol over real sockets: a story for each row of `docs/protocol-native.md`.

mod opening;
