//! RFC 6455 and RFC 7692 for a server: bytes to messages, payloads to frames.
//!
//! Everything here is pure: no sockets, no tasks, no clock. Whoever owns a socket reads into a scratch buffer, takes
//! messages off its front with [`Reader::next`], and writes the bytes that [`frame`] made. Start at [`reader`].
//!
//! A message that stands whole in one read is unmasked in place and borrowed: no copy, no allocation. A connection with
//! no unfinished frame holds no heap. Text is checked as it comes, so a bad byte ends the connection before the frame
//! does. Nothing is ever allocated because a length was announced; it grows with the bytes that came.
//!
//! What a peer did wrong is a [`Violation`]. Each has the code to close with; the bytes after it mean nothing.
//!
//! | refused | code |
//! | --- | --- |
//! | reserved bits nobody agreed on; reserved opcodes; frames without a mask; lengths not in their shortest form | 1002 |
//! | control frames in fragments or over 125 bytes; a continuation of nothing; a message inside another | 1002 |
//! | a close frame with one byte, or with a code that must not be sent | 1002 |
//! | text or a close reason that is not UTF-8; a compressed message that does not inflate | 1007 |
//! | more bytes, or more fragments, than [`Limits`] allow, before or after inflating | 1009 |

pub mod close;
pub mod deflate;
pub mod frame;
pub mod reader;

#[cfg(test)]
mod properties;

pub use close::CloseCode;
pub use deflate::{Deflater, Inflater};
pub use frame::Opcode;
pub use reader::{Limits, Message, Progress, Reader};

/// What a peer did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A bit of RFC 6455 5.2 that no extension gave a meaning, or the compression bit where it may not stand.
    #[error("reserved bits are set in the frame's first byte {0:#04x}")]
    ReservedBits(u8),
    /// An opcode that RFC 6455 keeps for later.
    #[error("opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// A frame from a client without a mask (RFC 6455 5.1).
    #[error("frame is not masked")]
    Unmasked,
    /// A length that needs fewer bytes than it was given.
    #[error("length {0} is not in its shortest form")]
    OverlongLength(u64),
    /// A 64-bit length with its top bit set.
    #[error("length has its top bit set")]
    LengthTopBit,
    /// A close, ping or pong that says more is to come.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A close, ping or pong of more than 125 bytes.
    #[error("control frame is longer than 125 bytes")]
    LongControl,
    /// A continuation while no message is under way.
    #[error("continuation frame continues nothing")]
    UnexpectedContinuation,
    /// A second message while the first is under way.
    #[error("message begins inside another")]
    Interleaved,
    /// A close frame with half a code.
    #[error("close frame holds a single byte")]
    ShortClose,
    /// A close code that must not stand on the wire.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// Text, or a close reason, that is not UTF-8.
    #[error("text is not valid UTF-8")]
    Utf8,
    /// A compressed message that is no whole DEFLATE stream.
    #[error("compressed message does not inflate")]
    Corrupt,
    /// A message over [`Limits::max_message`].
    #[error("message is larger than {limit} bytes")]
    TooBig {
        /// The limit that was passed, in bytes.
        limit: usize,
    },
    /// A message over [`Limits::max_fragments`].
    #[error("message has more than {limit} fragments")]
    TooManyFragments {
        /// The limit that was passed.
        limit: usize,
    },
}

impl Violation {
    /// The code to close the connection with.
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Utf8 | Self::Corrupt => CloseCode::INVALID_PAYLOAD,
            Self::TooBig { .. } | Self::TooManyFragments { .. } => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}
