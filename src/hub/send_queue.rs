//! What waits for one connection.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;

/// Frames that a socket did not take yet, in order. Empty, it holds no memory of its own.
#[derive(Default)]
pub(super) struct SendQueue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Whether a part of the first frame is out.
    begun: bool,
}

impl SendQueue {
    /// The most frames that go out in one write (`IOV_MAX` is 1024 on Linux).
    const MAX_SLICES: usize = 64;

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// The front of the queue, for one vectored write.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        self.frames.iter().take(Self::MAX_SLICES).map(|frame| IoSlice::new(frame)).collect()
    }

    /// Takes one frame out.
    pub fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.release_if_empty();
        Some(frame)
    }

    /// Takes out `written` bytes from the front.
    pub fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while 0 < written {
            let Some(front) = self.frames.front_mut() else { break };
            if written < front.len() {
                *front = front.slice(written..);
                self.begun = true;
                return;
            }
            self.begun = false;
            written -= front.len();
            self.frames.pop_front();
        }
        self.release_if_empty();
    }

    /// Notes that a part of the next frame is out already.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Throws away what waits, but for a frame that is out in part: the peer needs its end to read on.
    pub fn keep_begun(&mut self) {
        self.frames.truncate(usize::from(self.begun));
        self.bytes = self.frames.front().map_or(0, Bytes::len);
        self.release_if_empty();
    }

    /// The same, but keeps the last frame too.
    pub fn keep_ends(&mut self) {
        let (first, last) = (usize::from(self.begun), self.frames.len().saturating_sub(1));
        if first < last {
            self.frames.drain(first..last);
        }
        self.bytes = self.frames.iter().map(Bytes::len).sum();
    }

    /// Throws away what waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn release_if_empty(&mut self) {
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
            self.begun = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is left of three frames of which this many bytes are out.
    fn left(out: usize, keep: impl Fn(&mut SendQueue)) -> Vec<u8> {
        let mut queue = SendQueue::default();
        [&b"one"[..], b"two", b"end"].into_iter().for_each(|frame| queue.push(Bytes::from_static(frame)));
        queue.advance(out);
        keep(&mut queue);
        let mut left = Vec::new();
        while let Some(frame) = queue.pop() {
            left.extend_from_slice(&frame);
        }
        assert_eq!(queue.bytes(), 0);
        left
    }

    #[test]
    fn what_is_kept_of_a_stalled_queue_can_still_be_read() {
        for (out, begun, ends) in [(0, "", "end"), (1, "ne", "neend"), (3, "", "end"), (7, "nd", "nd"), (9, "", "")] {
            assert_eq!(left(out, SendQueue::keep_begun), begun.as_bytes(), "after {out} bytes");
            assert_eq!(left(out, SendQueue::keep_ends), ends.as_bytes(), "after {out} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_split_of_writes_sends_the_same_bytes(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..20),
            cuts in prop::collection::vec(1usize..30, 0..60),
        ) {
            let mut queue = SendQueue::default();
            frames.iter().for_each(|frame| queue.push(Bytes::copy_from_slice(frame)));
            let mut sent = Vec::new();
            for cut in cuts {
                let front: Vec<u8> = queue.slices().iter().flat_map(|slice| slice.to_vec()).take(cut).collect();
                queue.advance(front.len());
                sent.extend(front);
                prop_assert_eq!(queue.bytes() + sent.len(), frames.concat().len());
            }
            while let Some(frame) = queue.pop() {
                sent.extend_from_slice(&frame);
            }
            prop_assert_eq!(sent, frames.concat());
            prop_assert!(queue.is_empty() && queue.bytes() == 0);
        }
    }
}
