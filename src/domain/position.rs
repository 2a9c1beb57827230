//! Where a reader stands in a channel's history.

use std::{fmt, str::FromStr};

/// A publication's number in its channel: 1, 2, 3 … without a hole. 0 stands before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The offset before this one; 0 stays 0.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of one lifetime of a channel's numbering; new whenever its history was lost. Clients take it as opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

/// A text that never was an epoch of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is what the server sent as one")]
pub struct InvalidEpoch;

impl Epoch {
    /// An epoch from random bits.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits that it was made from.
    pub fn to_bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    /// Base 36, lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut digits, mut at) = (self.0, [b'0'; 13], 13);
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        f.write_str(std::str::from_utf8(&digits[at..]).expect("digits are ASCII"))
    }
}

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let canonical = raw.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
        match (canonical, u64::from_str_radix(raw, 36)) {
            (true, Ok(bits)) => Ok(Self(bits)),
            _ => Err(InvalidEpoch),
        }
    }
}

/// A place in one lifetime of a channel: everything up to `offset` has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which lifetime.
    pub epoch: Epoch,
    /// The last offset that was seen.
    pub offset: Offset,
}

impl Position {
    /// Whether `next` follows this position with nothing missing between.
    pub fn is_followed_by(&self, next: &Position) -> bool {
        self.epoch == next.epoch && self.offset.next() == next.offset
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_a_jump_or_a_new_epoch() {
        let at = |epoch, offset| Position { epoch: Epoch(epoch), offset: Offset(offset) };
        assert!(at(1, 4).is_followed_by(&at(1, 5)));
        assert!(!at(1, 4).is_followed_by(&at(1, 6)));
        assert!(!at(1, 4).is_followed_by(&at(1, 4)));
        assert!(!at(1, 4).is_followed_by(&at(2, 5)));
        assert!(!at(1, u64::MAX).is_followed_by(&at(1, 0)));
    }

    #[test]
    fn foreign_epochs_are_told_apart() {
        for bad in ["", "K3F9", "+1", "zzzzzzzzzzzzzzz", "é", "a b"] {
            assert_eq!(bad.parse::<Epoch>(), Err(InvalidEpoch), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_epoch_survives_its_text(bits: u64) {
            prop_assert_eq!(Epoch(bits).to_string().parse::<Epoch>(), Ok(Epoch(bits)));
        }
    }
}
