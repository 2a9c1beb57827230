//! Units in configuration values: `"25s"`, `"64KiB"`, `"200/1s"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that has not the form its key asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{raw}` is not {expected}")]
pub struct InvalidUnit {
    raw: String,
    expected: &'static str,
}

/// A duration such as `"250ms"`, `"25s"`, `"5m"`, `"1h"` or `"7d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    const UNITS: [(&'static str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
}

impl FromStr for Span {
    type Err = InvalidUnit;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUnit { raw: raw.into(), expected: "a duration such as \"25s\" (ms, s, m, h, d)" };
        let (number, unit) = split(raw).ok_or_else(invalid)?;
        let (_, millis) = Self::UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        number.checked_mul(millis).map(Duration::from_millis).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let fits = |(_, unit): &&(&str, u64)| millis.is_multiple_of(u128::from(*unit));
        let (name, unit) = Self::UNITS.iter().rev().filter(|_| millis != 0).find(fits).unwrap_or(&("s", 1_000));
        write!(f, "{}{name}", millis / u128::from(*unit))
    }
}

/// A number of bytes such as `"512B"`, `"64KiB"`, `"1MiB"` or `"2GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

impl ByteSize {
    const UNITS: [(&'static str, usize); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

    /// `n` times 1024 bytes.
    pub const fn kibibytes(n: usize) -> Self {
        Self(n << 10)
    }

    /// `n` times 1024² bytes.
    pub const fn mebibytes(n: usize) -> Self {
        Self(n << 20)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidUnit;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUnit { raw: raw.into(), expected: "a size such as \"64KiB\" (B, KiB, MiB, GiB)" };
        let (number, unit) = split(raw).ok_or_else(invalid)?;
        let (_, bytes) = Self::UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        usize::try_from(number).ok().and_then(|n| n.checked_mul(bytes)).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, usize)| self.0.is_multiple_of(*unit);
        let (name, unit) = Self::UNITS.iter().rev().filter(|_| self.0 != 0).find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// How often something may happen: `"burst/period"`, a bucket of that size refilled evenly over the period; `""` for
/// as often as one likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<(u32, Duration)>);

impl Rate {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// `burst` per second.
    pub const fn per_second(burst: u32) -> Self {
        Self(Some((burst, Duration::from_secs(1))))
    }
}

impl FromStr for Rate {
    type Err = InvalidUnit;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUnit { raw: raw.into(), expected: "a rate such as \"200/1s\", or \"\" for none" };
        if raw.is_empty() {
            return Ok(Self::NONE);
        }
        let (burst, period) = raw.split_once('/').ok_or_else(invalid)?;
        let burst = burst.parse().ok().filter(|burst| *burst != 0).ok_or_else(invalid)?;
        let Span(period) = period.parse().map_err(|_| invalid())?;
        match period.is_zero() {
            true => Err(invalid()),
            false => Ok(Self(Some((burst, period)))),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |(burst, period)| write!(f, "{burst}/{}", Span(period)))
    }
}

/// The leading digits and what follows them.
fn split(raw: &str) -> Option<(u64, &str)> {
    let at = raw.find(|c: char| !c.is_ascii_digit())?;
    Some((raw[..at].parse().ok()?, &raw[at..]))
}

macro_rules! as_text {
    ($($unit:ty),*) => {$(
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let raw = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                raw.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Span, ByteSize, Rate);

/// One value, or a list of them.
pub(super) mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
        Ok(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(value) => vec![value],
            OneOrMany::Many(values) => values,
        })
    }

    pub fn serialize<T: Serialize, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        match values {
            [value] => value.serialize(serializer),
            values => values.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_read_and_write_the_same_text() {
        for text in ["250ms", "25s", "5m", "1h", "7d", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["512B", "64KiB", "1MiB", "2GiB", "0B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["200/1s", "50/1m", ""] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for bad in ["", "25", "s", "-1s", "1 s", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["", "64", "64KB", "64kib", "18446744073709551615GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["0/1s", "5", "5/", "/1s", "5/0s", "-5/1s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }
}
