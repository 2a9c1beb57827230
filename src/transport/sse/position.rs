//! Where an event stream stands, in all of its channels, as the opaque text of an event's `id:`.
//!
//! In base64url: a version, then for each channel 6 bytes of the SHA-256 of its app and name, its epoch in 8 bytes, and
//! its offset in as few as it needs (LEB128). Channels are named by digests so that the text stays short (20 characters or
//! so for each) and still means the same after some were added or left out. It is no secret and not signed: whoever
//! changes it changes what is sent to him of channels that he may read anyway, and a text that cannot be read is none.

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};

use super::MAX_CHANNELS;
use crate::{
    domain::{Channel, Epoch, Offset, Position, Start},
    protocol::native::events::Mark,
};

const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 6;
/// An epoch's bytes, and the most that an offset takes.
const EPOCH_BYTES: usize = 8;
const OFFSET_BYTES: usize = 10;
/// The longest text that is read.
const MAX_TEXT_BYTES: usize = (1 + MAX_CHANNELS * (DIGEST_BYTES + EPOCH_BYTES + OFFSET_BYTES)).div_ceil(3) * 4;

type Digest = [u8; DIGEST_BYTES];

/// Where a stream stands.
pub struct StreamPosition {
    channels: Vec<Place>,
    /// Reused for each event.
    bytes: Vec<u8>,
    text: String,
}

struct Place {
    channel: Channel,
    digest: Digest,
    position: Option<Position>,
}

impl StreamPosition {
    /// A stream of these channels that was at `text` before. Channels of which it says nothing have no position yet.
    pub fn new(channels: Vec<Channel>, text: &str) -> Self {
        let known = read(text).unwrap_or_default();
        let place = |channel: Channel| {
            let digest = digest_of(&channel);
            let position = known.iter().find(|(each, _)| *each == digest).map(|(_, position)| *position);
            Place { channel, digest, position }
        };
        Self { channels: channels.into_iter().map(place).collect(), bytes: Vec::new(), text: String::new() }
    }

    /// Where each channel starts: after its position, or at `otherwise`.
    pub fn starts(&self, otherwise: Start) -> Vec<Start> {
        let start = |place: &Place| place.position.map_or(otherwise, |position| Start::After(Some(position)));
        self.channels.iter().map(start).collect()
    }

    /// Notes an event. One of a channel that the stream did not ask for (the application subscribed it) is sent, but a
    /// stream that is opened again does not ask for it either.
    pub fn advance(&mut self, mark: Mark<'_>) {
        if let Some(place) = self.channels.iter_mut().find(|place| place.channel.name() == mark.channel) {
            place.position = Some(mark.position);
        }
    }

    /// Appends the text.
    pub fn write(&mut self, out: &mut BytesMut) {
        let Self { channels, bytes, text } = self;
        bytes.clear();
        bytes.push(VERSION);
        for Place { digest, position, .. } in channels {
            if let Some(Position { epoch, offset }) = position {
                bytes.extend_from_slice(digest);
                bytes.extend_from_slice(&epoch.to_bits().to_be_bytes());
                write_number(offset.0, bytes);
            }
        }
        text.clear();
        URL_SAFE_NO_PAD.encode_string(bytes, text);
        out.put_slice(text.as_bytes());
    }
}

fn digest_of(channel: &Channel) -> Digest {
    let whole = digest::digest(&digest::SHA256, channel.key().as_bytes());
    std::array::from_fn(|at| whole.as_ref()[at])
}

/// What a text says; `None` for one that never was written here.
fn read(text: &str) -> Option<Vec<(Digest, Position)>> {
    if MAX_TEXT_BYTES < text.len() {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let mut rest = bytes.strip_prefix(&[VERSION])?;
    let mut known = Vec::new();
    while !rest.is_empty() {
        let (digest, later) = rest.split_first_chunk::<DIGEST_BYTES>()?;
        let (epoch, later) = later.split_first_chunk::<EPOCH_BYTES>()?;
        let (offset, later) = read_number(later)?;
        rest = later;
        known.push((*digest, Position { epoch: Epoch::from_bits(u64::from_be_bytes(*epoch)), offset: Offset(offset) }));
    }
    Some(known)
}

fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while 0x80 <= number {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(OFFSET_BYTES) {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * at);
        if shifted >> (7 * at) != bits {
            return None;
        }
        number |= shifted;
        if *byte < 0x80 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channels(app: &str, names: &[&str]) -> Vec<Channel> {
        names.iter().map(|name| Channel::new(&app.parse().unwrap(), &name.parse().unwrap())).collect()
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch::from_bits(epoch), offset: Offset(offset) }
    }

    fn text(position: &mut StreamPosition) -> String {
        let mut out = BytesMut::new();
        position.write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn written() -> String {
        let mut position = StreamPosition::new(channels("default", &["a", "b", "c"]), "");
        position.advance(Mark { channel: "a", position: at(7, 300) });
        position.advance(Mark { channel: "b", position: at(u64::MAX, u64::MAX) });
        position.advance(Mark { channel: "elsewhere", position: at(1, 1) });
        text(&mut position)
    }

    #[test]
    fn a_stream_with_other_channels_knows_those_that_it_had() {
        let position = StreamPosition::new(channels("default", &["d", "b", "c", "a"]), &written());
        let after = |position| Start::After(Some(position));
        let expected = [Start::Last(3), after(at(u64::MAX, u64::MAX)), Start::Last(3), after(at(7, 300))];
        assert_eq!(position.starts(Start::Last(3)), expected);
    }

    #[test]
    fn another_app_s_position_is_none_of_ours() {
        let position = StreamPosition::new(channels("other", &["a", "b"]), &written());
        assert_eq!(position.starts(Start::Live), [Start::Live; 2]);
    }

    #[test]
    fn a_channel_that_is_not_heard_of_keeps_its_position() {
        let mut position = StreamPosition::new(channels("default", &["a", "b"]), &written());
        position.advance(Mark { channel: "b", position: at(8, 1) });
        let position = StreamPosition::new(channels("default", &["a", "b"]), &text(&mut position));
        assert_eq!(position.starts(Start::Live), [at(7, 300), at(8, 1)].map(|at| Start::After(Some(at))));
    }

    #[test]
    fn the_longest_text_is_still_read() {
        let names: Vec<_> = (0..MAX_CHANNELS).map(|n| format!("channel-{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut position = StreamPosition::new(channels("default", &names), "");
        names.iter().for_each(|name| position.advance(Mark { channel: name, position: at(1, u64::MAX) }));
        let text = text(&mut position);
        assert!(
            text.len() <= MAX_TEXT_BYTES
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        );
        assert!(read(&text).is_some_and(|known| known.len() == MAX_CHANNELS));
    }

    proptest! {
        #[test]
        fn numbers_survive(number: u64) {
            let mut bytes = Vec::new();
            write_number(number, &mut bytes);
            bytes.push(5);
            prop_assert_eq!(read_number(&bytes), Some((number, &[5_u8][..])));
        }

        #[test]
        fn nonsense_is_like_nothing_and_never_panics(raw in "[A-Za-z0-9_-]{0,60}|.{0,30}") {
            let position = StreamPosition::new(channels("default", &["a"]), &raw);
            prop_assert_eq!(position.starts(Start::Live), [Start::Live]);
        }

        #[test]
        fn a_text_that_was_cut_or_changed_never_panics(cut in 0_usize..60, at in 0_usize..60, byte in "[A-Za-z0-9_-]") {
            let mut text = written();
            text.truncate(cut);
            if at < text.len() {
                text.replace_range(at..=at, &byte);
            }
            let _ = StreamPosition::new(channels("default", &["a", "b"]), &text).starts(Start::Live);
        }
    }
}
