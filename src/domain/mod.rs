//! The vocabulary: plain types that every other module speaks.
//!
//! Here stand the things themselves: channels, events, positions, members, identities, commands and errors. No I/O, no
//! async and no serde: three protocols give three shapes to the same publication, and each codec owns its own.
//! Values from outside are parsed here once and cannot be wrong afterwards. Start at [`Command`] and [`Push`].

mod channel;
mod command;
mod error;
mod event;
mod format;
mod id;
mod identity;
mod position;
mod presence;
mod revocation;

pub use channel::{AppId, Channel, ChannelName, InvalidAppId, InvalidChannelName};
pub use command::{
    Command, HistoryQuery, HistoryReply, Publish, Published, Push, Reply, Request, Start, Subscribe, Subscribed,
    Welcome,
};
pub use error::{DisconnectReason, ErrorCode, Refusal};
pub use event::{Event, IdempotencyKey, InvalidKey, Payload, Publication, Publisher, Tags, UnixMillis};
pub use format::Format;
pub use id::{CommandId, ConnectionId, InvalidId, NodeId, PublicationId};
pub use identity::{Action, Actions, Grant, Identity, InvalidPattern, Pattern, UserId};
pub use position::{Epoch, InvalidEpoch, Offset, Position};
pub use presence::{Member, PresenceStats};
pub use revocation::{Revocation, Revoked, Stamp, TokenId};
