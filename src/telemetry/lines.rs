//! Log lines on their way out: a bounded queue, and one thread that writes it to standard error.
//!
//! Whoever has something to say must not wait for who reads it: a pipe that nobody empties would stop a shard. So a line
//! for which there is no room is dropped and counted, and a line says how many once writing goes on. Start at [`Lines`].

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

/// Bytes of lines that may wait: some seven thousand.
const MAX_WAITING: usize = 1 << 20;
/// How long the last lines may take to leave at the end of the process.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// The way into the queue; each write is one line.
pub(super) struct Lines {
    tx: Sender<Item>,
    queue: Arc<Queue>,
}

/// What both ends know of the queue.
#[derive(Default)]
struct Queue {
    waiting_bytes: AtomicUsize,
    dropped: Counter,
}

enum Item {
    Line(Box<[u8]>),
    /// Somebody waits until all that came before is written.
    Flush(SyncSender<()>),
}

/// The log, for as long as it is to be written. Dropping it waits until what was said is out, if that is soon.
pub struct Log {
    tx: Sender<Item>,
    queue: Arc<Queue>,
}

impl Lines {
    /// A queue whose lines `out` gets, on a thread of its own that lives as long as the process.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Log)> {
        let (tx, rx) = mpsc::channel();
        let queue = Arc::new(Queue::default());
        let own = queue.clone();
        thread::Builder::new().name("log".into()).spawn(move || write_out(&rx, &own, out))?;
        Ok((Self { tx: tx.clone(), queue: queue.clone() }, Log { tx, queue }))
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let before = self.queue.waiting_bytes.fetch_add(line.len(), Ordering::Relaxed);
        // The thread lives as long as the process, so that only a full queue refuses a line.
        if MAX_WAITING < before + line.len() || self.tx.send(Item::Line(line.into())).is_err() {
            self.queue.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.queue.dropped.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Counts the lines for which there was no room.
    pub fn dropped(&self) -> Counter {
        self.queue.dropped.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (tx, written) = mpsc::sync_channel(1);
        if self.tx.send(Item::Flush(tx)).is_err() {
            return;
        }
        // Whoever does not read by then has had its time: the process must end.
        let _ = written.recv_timeout(FLUSH_DEADLINE);
    }
}

fn write_out(rx: &Receiver<Item>, queue: &Queue, mut out: impl Write) {
    let mut told = 0;
    for item in rx {
        match item {
            Item::Line(line) => {
                // There is nobody to whom a failure could be told.
                let _ = out.write_all(&line);
                queue.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Item::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
        let dropped = queue.dropped.get();
        // Only where this line has room itself.
        if told < dropped && queue.waiting_bytes.load(Ordering::Relaxed) < MAX_WAITING / 2 {
            tracing::warn!("{} log lines were dropped: standard error took them too slowly", dropped - told);
            told = dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes nothing until it is unlocked.
    #[derive(Clone, Default)]
    struct Stalling(Arc<Mutex<Vec<u8>>>);

    impl Write for Stalling {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_said_before_the_end_is_out_after_it() {
        let out = Stalling::default();
        let (lines, log) = Lines::start(out.clone()).unwrap();
        for n in 0..1000 {
            writeln!(&mut &lines, "line {n}").unwrap();
        }
        assert_eq!(log.dropped().get(), 0);
        drop(log);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1000);
        assert!(text.ends_with("line 999\n"));
    }

    #[test]
    fn who_writes_never_waits_and_what_does_not_fit_is_counted() {
        let out = Stalling::default();
        let (lines, log) = Lines::start(out.clone()).unwrap();
        let stalled = out.0.lock().unwrap();
        let line = [b'x'; 1023];
        for _ in 0..1500 {
            (&lines).write_all(&[&line[..], b"\n"].concat()).unwrap();
        }
        // One may be in the writer's hands, where it still counts.
        assert_eq!(log.dropped().get(), 1500 - 1024);
        drop(stalled);
        let dropped = log.dropped();
        drop(log);
        assert_eq!(out.0.lock().unwrap().len(), 1 << 20);
        assert_eq!(dropped.get(), 1500 - 1024);
    }
}
