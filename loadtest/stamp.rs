//! What a publication of ours carries, and how a delivery is read without parsing JSON.
//!
//! `data` begins with fields of a fixed width in a fixed order, so [`Reader`] finds them where the last delivery had
//! them, checks the mark before them, and reads sixteen and three times eight hexadecimal digits. Publish frames are
//! prepared once ([`Template`]) and only their digits are written anew.

use std::fmt::Write as _;

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// What stands before the digits of `at`; `data` begins so.
const MARK: &[u8] = br#"{"at":""#;
const CHANNEL: usize = MARK.len() + 16 + br#"","channel":""#.len();
const NUMBER: usize = CHANNEL + 8 + br#"","number":""#.len();
const SLOT: usize = NUMBER + 8 + br#"","slot":""#.len();
const END: usize = SLOT + 8 + br#"","#.len();
/// The least bytes that `data` takes.
pub const MIN_DATA_BYTES: usize = END + br#""fill":""}"#.len();

/// Added to the number of a publication in the frame's `id`, so that ids have one width without leading zeros.
const FIRST_ID: u64 = 1_000_000_000;
/// Bodies that take turns where they are to be like real ones, so that no two neighbours are alike.
const BODIES: usize = 16;

/// What a publication says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When it was published or, at a fixed rate, when it should have been: nanoseconds of the run's clock.
    pub at: u64,
    pub channel: u32,
    /// Its number in its channel, from 0.
    pub number: u32,
    /// Which of the publications under way it is.
    pub slot: u32,
}

/// What fills `data` up to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One letter, repeated.
    Letters,
    /// JSON such as applications send: names repeat, values differ.
    Records,
}

/// The name of a channel, always of the same length.
pub fn channel_name(namespace: &str, channel: u32) -> String {
    format!("{namespace}:{channel:08x}")
}

/// A publish frame's text, prepared; only its digits change from one publication to the next.
#[derive(Debug)]
pub struct Template {
    bodies: Vec<Vec<u8>>,
    name_at: usize,
    id_at: Option<usize>,
    data_at: usize,
}

impl Template {
    /// A frame that publishes `data_bytes` of `data` into a channel of `namespace`; with an `id` if an answer is wanted.
    pub fn new(namespace: &str, data_bytes: usize, fill: Fill, acknowledged: bool) -> Self {
        let mut head = format!(r#"{{"type":"publish","channel":"{namespace}:"#);
        let name_at = head.len();
        head.push_str(r#"00000000","#);
        let id_at = acknowledged.then(|| {
            head.push_str(r#""id":"#);
            head.len()
        });
        if acknowledged {
            let _ = write!(head, "{FIRST_ID},");
        }
        head.push_str(r#""data":"#);
        let data_at = head.len();
        let count = if fill == Fill::Records { BODIES } else { 1 };
        let bodies = (0..count).map(|seed| format!("{head}{}}}", data(data_bytes, fill, seed as u64)).into_bytes());
        Self { bodies: bodies.collect(), name_at, id_at, data_at }
    }

    /// The frame's text for one publication; `id` is ignored where no answer is wanted.
    pub fn stamped(&mut self, stamp: Stamp, id: u64) -> &[u8] {
        let turn = stamp.number as usize % self.bodies.len();
        let body = &mut self.bodies[turn];
        write_hex(&mut body[self.name_at..self.name_at + 8], u64::from(stamp.channel));
        if let Some(at) = self.id_at {
            write_decimal(&mut body[at..at + 10], FIRST_ID + id);
        }
        let data = &mut body[self.data_at..];
        write_hex(&mut data[MARK.len()..MARK.len() + 16], stamp.at);
        write_hex(&mut data[CHANNEL..CHANNEL + 8], u64::from(stamp.channel));
        write_hex(&mut data[NUMBER..NUMBER + 8], u64::from(stamp.number));
        write_hex(&mut data[SLOT..SLOT + 8], u64::from(stamp.slot));
        body
    }
}

/// The `data` of a publication with zeros for digits, `bytes` long or as short as it can be.
fn data(bytes: usize, fill: Fill, seed: u64) -> String {
    let mut data = format!(r#"{{"at":"{:016}","channel":"{:08}","number":"{:08}","slot":"{:08}","#, 0, 0, 0, 0);
    let mut rng = SmallRng::seed_from_u64(seed);
    if fill == Fill::Records {
        data.push_str(r#""items":["#);
        let names = ["Amsterdam", "Bergen", "Cádiz", "Dresden", "Esbjerg", "Faro", "Galway", "Hoorn"];
        let states = ["open", "paid", "shipped", "returned"];
        while data.len() + 150 < bytes {
            let _ = write!(
                data,
                r#"{{"id":"{:012x}","city":"{}","state":"{}","price":{}.{:02},"count":{}}},"#,
                rng.random::<u64>() >> 16,
                names[rng.random_range(0..names.len())],
                states[rng.random_range(0..states.len())],
                rng.random_range(1..2000),
                rng.random_range(0..100),
                rng.random_range(1..40),
            );
        }
        data.push_str("null],");
    }
    data.push_str(r#""fill":""#);
    let missing = bytes.saturating_sub(data.len() + 2);
    data.extend(
        (0..missing).map(|_| if fill == Fill::Records { char::from(rng.random_range(b'a'..=b'z')) } else { 'x' }),
    );
    data.push_str(r#""}"#);
    data
}

/// Reads deliveries and acknowledgements, guessing that the next one is laid out like the last.
#[derive(Debug, Default)]
pub struct Reader {
    data_at: usize,
    offset_at: usize,
    id_at: usize,
}

impl Reader {
    /// The stamp in a delivery, or `None` if this frame is none of ours.
    pub fn stamp(&mut self, frame: &[u8]) -> Option<Stamp> {
        if !at(frame, self.data_at, MARK) {
            self.data_at = find(frame, MARK)?;
        }
        let data = frame.get(self.data_at..self.data_at + END)?;
        Some(Stamp {
            at: u64::from(read_hex(data, MARK.len())?) << 32 | u64::from(read_hex(data, MARK.len() + 8)?),
            channel: read_hex(data, CHANNEL)?,
            number: read_hex(data, NUMBER)?,
            slot: read_hex(data, SLOT)?,
        })
    }

    /// The `offset` of a delivery or an acknowledgement.
    pub fn offset(&mut self, frame: &[u8]) -> Option<u64> {
        const KEY: &[u8] = br#""offset":"#;
        if !at(frame, self.offset_at, KEY) {
            self.offset_at = find(frame, KEY)?;
        }
        read_decimal(&frame[self.offset_at + KEY.len()..])
    }

    /// Which publication an acknowledgement is for, counted as in [`Template::stamped`].
    pub fn acknowledged(&mut self, frame: &[u8]) -> Option<u64> {
        const KEY: &[u8] = br#""id":"#;
        if !at(frame, self.id_at, KEY) {
            self.id_at = find(frame, KEY)?;
        }
        read_decimal(&frame[self.id_at + KEY.len()..])?.checked_sub(FIRST_ID)
    }
}

/// The `type` of a frame, which our servers put first; empty where it is not to be found.
pub fn frame_type(frame: &[u8]) -> &str {
    text_member(frame, br#""type":""#).unwrap_or("")
}

/// The string after `key` (with its quotes and colon), as far as it needs no unescaping.
pub fn text_member<'a>(frame: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let value = &frame[find(frame, key)? + key.len()..];
    let end = value.iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(&value[..end]).ok()
}

/// Where `wanted` first stands in `bytes`.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn at(bytes: &[u8], place: usize, wanted: &[u8]) -> bool {
    bytes.get(place..place + wanted.len()) == Some(wanted)
}

/// Eight lower-case hexadecimal digits at `place`, all at once: each byte becomes a nibble, then neighbours are joined.
fn read_hex(bytes: &[u8], place: usize) -> Option<u32> {
    let digits: [u8; 8] = bytes.get(place..place + 8)?.try_into().ok()?;
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let text = u64::from_be_bytes(digits);
    let letters = (text >> 6) & 0x0101_0101_0101_0101;
    let nibbles = (text & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
    let bytes = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let words = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    Some((words | words >> 16) as u32)
}

fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_decimal(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).take(19);
    let (value, count) = digits.fold((0, 0), |(value, count), digit| (value * 10 + u64::from(digit - b'0'), count + 1));
    (0 < count).then_some(value)
}

fn write_decimal(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_published_can_be_read_from_the_delivery(
            at: u64, channel: u32, number: u32, slot: u32, id in 0u64..8_999_999_999, offset: u32, bytes in 0usize..3000,
        ) {
            for fill in [Fill::Letters, Fill::Records] {
                let stamp = Stamp { at, channel, number, slot };
                let mut template = Template::new("load", bytes, fill, true);
                let text = template.stamped(stamp, id).to_vec();
                let published: serde_json::Value = serde_json::from_slice(&text).unwrap();
                prop_assert_eq!(&published["channel"], &channel_name("load", channel));
                prop_assert_eq!(&published["id"], FIRST_ID + id);

                let data = &text[template.data_at..text.len() - 1];
                if 1000 <= bytes {
                    prop_assert_eq!(data.len(), bytes);
                }
                let mut delivery = br#"{"type":"message","channel":"a","data":"#.to_vec();
                delivery.extend_from_slice(data);
                delivery.extend(format!(r#","id":"x","offset":{offset},"time":1}}"#).bytes());
                let mut reader = Reader::default();
                for _ in 0..2 {
                    prop_assert_eq!(reader.stamp(&delivery), Some(stamp));
                    prop_assert_eq!(reader.offset(&delivery), Some(u64::from(offset)));
                }
                let answer = format!(r#"{{"type":"published","id":{},"channel":"a"}}"#, FIRST_ID + id);
                prop_assert_eq!(reader.acknowledged(answer.as_bytes()), Some(id));
            }
        }

        #[test]
        fn no_bytes_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader { data_at: 5, offset_at: 190, id_at: 7 };
            let mut marked = frame.clone();
            marked.splice(0..0, MARK.iter().copied());
            for frame in [&frame, &marked] {
                let _ = (reader.stamp(frame), reader.offset(frame), reader.acknowledged(frame), frame_type(frame));
            }
        }
    }

    #[test]
    fn data_has_the_size_that_was_asked_for() {
        assert_eq!(data(128, Fill::Letters, 0).len(), 128);
        assert_eq!(data(1024, Fill::Records, 3).len(), 1024);
        assert_eq!(data(0, Fill::Letters, 0).len(), MIN_DATA_BYTES);
    }

    #[test]
    fn a_frame_of_another_kind_is_not_taken_for_a_delivery() {
        let mut reader = Reader::default();
        let error = br#"{"type":"error","code":"rate_limited","message":"slow down"}"#;
        assert_eq!(reader.stamp(error), None);
        assert_eq!(frame_type(error), "error");
        assert_eq!(text_member(error, br#""code":""#), Some("rate_limited"));
        assert_eq!(
            reader.stamp(br#"{"at":"000000000000000g","channel":"00000000","number":"00000000","slot":"00000000","}"#),
            None
        );
    }
}
