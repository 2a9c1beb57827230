//! Close codes and the payload of a close frame, in and out (RFC 6455 5.5.1 and 7.4).

use super::Violation;

/// Why a WebSocket ends, as a number.
///
/// Invariant: a code that may stand in a close frame, by RFC 6455 7.4 and IANA's registry: 1000 to 1003, 1007 to 1014
/// and 3000 to 4999. 1005, 1006 and 1015 only report what was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// The server goes down, or the page was left.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke RFC 6455.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// Text was expected and binary came, or the other way round.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// A message does not hold what its type says, such as text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// A rule was broken that has no code of its own.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// A message is larger than is accepted here.
    pub const TOO_BIG: Self = Self(1009);
    /// The server met a condition it did not expect.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// The server restarts; come back after a while.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// The server is overloaded; come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// `code`, if it may stand in a close frame.
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The longest reason, in bytes: a control frame's 125 less the code.
pub const MAX_REASON_BYTES: usize = 123;

/// A close frame's code and reason from its payload. An empty payload has neither.
pub(super) fn parse(payload: &[u8]) -> Result<(Option<CloseCode>, &str), Violation> {
    match payload {
        [] => Ok((None, "")),
        [_] => Err(Violation::ShortClose),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let code = CloseCode::new(code).ok_or(Violation::CloseCode(code))?;
            Ok((Some(code), std::str::from_utf8(reason).map_err(|_| Violation::Utf8)?))
        }
    }
}

/// `reason`, cut between two characters to at most [`MAX_REASON_BYTES`].
pub(super) fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_may_be_sent_exist() {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
    }

    #[test]
    fn a_close_frame_has_nothing_or_a_code_or_a_code_and_a_reason() {
        assert_eq!(parse(b""), Ok((None, "")));
        assert_eq!(parse(b"\x03\xe8"), Ok((Some(CloseCode::NORMAL), "")));
        assert_eq!(parse(b"\x03\xe9bye"), Ok((Some(CloseCode::GOING_AWAY), "bye")));
        assert_eq!(parse(b"\x03"), Err(Violation::ShortClose));
        assert_eq!(parse(b"\x03\xed"), Err(Violation::CloseCode(1005)));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Violation::Utf8));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"x".repeat(200)).len(), 123);
        assert_eq!(cut(&"é".repeat(100)).len(), 122);
        assert_eq!(cut(&"x".repeat(123)).len(), 123);
    }
}
