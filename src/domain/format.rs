//! The closed list of wire formats.

/// A form in which a push can leave this node. Names only: bytes are the codecs' affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// Our JSON in a WebSocket text frame.
    Native,
    /// The same frame, deflated (RFC 7692) where that pays.
    NativeDeflated,
    /// Our JSON as the `data:` field of an event stream.
    NativeEvents,
}

impl Format {
    /// How many formats there are.
    pub const COUNT: usize = 3;
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [Self::Native, Self::NativeDeflated, Self::NativeEvents];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_s_number_is_its_place_in_the_list() {
        for (at, format) in Format::ALL.into_iter().enumerate() {
            assert_eq!(format as usize, at);
        }
    }
}
