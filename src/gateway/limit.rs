//! How often something may happen: one bucket, and a bounded table of them by client address.
//!
//! Start at [`TokenBucket`].

use std::{
    collections::HashMap,
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::config::Rate;

/// A bucket that starts full, gives one token a time and is refilled evenly.
///
/// It counts what was taken since it was last full instead of adding up small refills, so nothing is lost to rounding,
/// however often it is asked.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// When it was last full.
    since: Instant,
    /// What was taken since then.
    taken: u64,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(now: Instant) -> Self {
        Self { since: now, taken: 0 }
    }

    /// Takes one token, if there is one.
    ///
    /// The rate may be another one each time, as after a reload: it then holds from when the bucket was last full, and
    /// whoever had taken more than the new bucket holds starts with an empty one.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let Rate(Some((burst, period))) = rate else { return Ok(()) };
        let (burst, period) = (u128::from(burst), period.as_nanos().max(1));
        let elapsed = now.saturating_duration_since(self.since).as_nanos();
        let refilled = elapsed.saturating_mul(burst) / period;
        let missing = u128::from(self.taken).saturating_sub(refilled);
        if missing == 0 {
            *self = Self { since: now, taken: 1 };
            return Ok(());
        }
        if burst < missing {
            *self = Self { since: now, taken: u64::try_from(burst).unwrap_or(u64::MAX) };
            return Err(nanoseconds(period.div_ceil(burst)));
        }
        if missing == burst {
            let whole = (refilled + 1).saturating_mul(period).div_ceil(burst);
            return Err(nanoseconds(whole.saturating_sub(elapsed)));
        }
        self.taken += 1;
        Ok(())
    }
}

fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Buckets by key, such as a client's address.
///
/// There are two generations of them: a bucket that was not asked for a whole generation, which lasts at least the rate's
/// period, is full again and may be forgotten with it. If more than [`Buckets::MAX_YOUNG`] keys come in one
/// generation it ends early and the quietest are forgotten too soon: memory is bounded before fairness is.
pub(super) struct Buckets {
    generations: Mutex<Generations>,
}

struct Generations {
    began: Instant,
    young: HashMap<u64, TokenBucket, foldhash::quality::RandomState>,
    old: HashMap<u64, TokenBucket, foldhash::quality::RandomState>,
}

impl Buckets {
    /// The most keys in one generation: 2 × 65,536 × 33 bytes are about 4 MiB.
    const MAX_YOUNG: usize = 65_536;

    pub(super) fn new(now: Instant) -> Self {
        let generations = Generations { began: now, young: HashMap::default(), old: HashMap::default() };
        Self { generations: Mutex::new(generations) }
    }

    /// Takes one token from the bucket of `key`. A generation lasts `generation` at least.
    ///
    /// # Errors
    /// How long to wait.
    pub(super) fn take(&self, key: u64, rate: Rate, generation: Duration, now: Instant) -> Result<(), Duration> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Self::MAX_YOUNG <= generations.young.len();
        if full || generation <= now.saturating_duration_since(generations.began) {
            generations.old = std::mem::take(&mut generations.young);
            generations.began = now;
        }
        let Generations { young, old, .. } = &mut *generations;
        let bucket = young.entry(key).or_insert_with(|| old.remove(&key).unwrap_or_else(|| TokenBucket::full(now)));
        bucket.take(rate, now)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let generations = self.generations.lock().unwrap();
        generations.young.len() + generations.old.len()
    }
}

/// Counts new connections by client address.
pub(super) struct AddressLimit {
    rate: Rate,
    buckets: Buckets,
}

impl AddressLimit {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, buckets: Buckets::new(now) }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts one connection from `address`.
    ///
    /// # Errors
    /// How long `address` has to wait.
    pub(super) fn admit(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Rate(Some((_, period))) = self.rate else { return Ok(()) };
        self.buckets.take(network(address), self.rate, period, now)
    }
}

/// Counts publications that come without a connection, by user, or by address where there is none: what a namespace
/// lets one connection publish, a client may not exceed by calling.
pub(super) struct PublicationLimit {
    buckets: Buckets,
    hasher: foldhash::quality::RandomState,
}

impl PublicationLimit {
    /// How long a generation lasts; a longer period of a rate is as good as this one.
    const GENERATION: Duration = Duration::from_secs(60);

    pub(super) fn new(now: Instant) -> Self {
        Self { buckets: Buckets::new(now), hasher: foldhash::quality::RandomState::default() }
    }

    /// Counts one publication of `user`, else from `address`.
    ///
    /// # Errors
    /// How long to wait.
    pub(super) fn admit(
        &self,
        (app, namespace): (&str, &str),
        user: Option<&str>,
        address: IpAddr,
        rate: Rate,
        now: Instant,
    ) -> Result<(), Duration> {
        let Rate(Some((_, period))) = rate else { return Ok(()) };
        let who = user.ok_or_else(|| network(address));
        let key = self.hasher.hash_one((app, namespace, who));
        self.buckets.take(key, rate, period.max(Self::GENERATION), now)
    }
}

/// What counts as one address: an IPv4 address, or the /64 that a household or a machine gets of IPv6.
///
/// An IPv4 address takes the place of `::ffff:0:0/96`'s network, which no IPv6 packet comes from.
fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => v6_network(address),
    }
}

/// The upper half of the address. Global and local networks begin with other bits than zeros, so that the few that
/// begin with 32 of them (`::1` among them, which is one with 0.0.0.0) do not matter beside IPv4.
fn v6_network(address: Ipv6Addr) -> u64 {
    u64::try_from(u128::from(address) >> 64).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn publications_are_counted_by_app_namespace_and_user_or_address() {
        let (now, limit) = (Instant::now(), PublicationLimit::new(Instant::now()));
        let rate = rate(1, Duration::from_secs(10));
        let admitted =
            |place, user, address: &str| limit.admit(place, user, address.parse().unwrap(), rate, now).is_ok();
        let place = ("shop", "room");
        assert!(admitted(place, Some("ann"), "192.0.2.1") && !admitted(place, Some("ann"), "192.0.2.2"));
        assert!(admitted(place, Some("bob"), "192.0.2.1"));
        assert!(admitted(place, None, "192.0.2.1") && !admitted(place, None, "192.0.2.1"));
        assert!(admitted(place, None, "192.0.2.2"));
        assert!(
            admitted(("bank", "room"), Some("ann"), "192.0.2.1") && admitted(("shop", ""), Some("ann"), "192.0.2.1")
        );
    }

    const fn rate(burst: u32, period: Duration) -> Rate {
        Rate(Some((burst, period)))
    }

    #[test]
    fn a_bucket_is_small() {
        assert!(size_of::<TokenBucket>() <= 24);
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_each_part_of_the_period() {
        let (start, rate) = (Instant::now(), rate(3, Duration::from_secs(1)));
        let mut bucket = TokenBucket::full(start);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, start), Ok(()));
        }
        let wait = bucket.take(rate, start).unwrap_err();
        assert_eq!(wait, Duration::from_nanos(333_333_334), "the first nanosecond at which there is a whole token");
        assert_eq!(bucket.take(rate, start + wait - Duration::from_nanos(1)), Err(Duration::from_nanos(1)));
        assert_eq!(bucket.take(rate, start + wait), Ok(()));
        assert!(bucket.take(rate, start + wait).is_err());
        let later = start + Duration::from_secs(60);
        assert_eq!(
            (0..10).filter(|_| bucket.take(rate, later).is_ok()).count(),
            3,
            "it never holds more than its burst"
        );
    }

    #[test]
    fn no_rate_is_no_limit_and_time_that_runs_backwards_is_none() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(start);
        assert!((0..1000).all(|_| bucket.take(Rate::NONE, start).is_ok()));
        let rate = rate(1, Duration::from_secs(1));
        let mut bucket = TokenBucket::full(start + Duration::from_secs(5));
        assert_eq!(bucket.take(rate, start), Ok(()));
        assert_eq!(bucket.take(rate, start), Err(Duration::from_secs(1)));
    }

    #[test]
    fn a_narrower_rate_after_a_reload_starts_empty_instead_of_in_debt() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(start);
        for _ in 0..1000 {
            bucket.take(rate(1000, Duration::from_secs(1)), start).unwrap();
        }
        let narrow = rate(2, Duration::from_secs(10));
        assert_eq!(bucket.take(narrow, start), Err(Duration::from_secs(5)));
        assert_eq!(bucket.take(narrow, start + Duration::from_secs(5)), Ok(()));
    }

    #[test]
    fn an_hour_at_the_rate_loses_nothing_to_rounding() {
        let (start, rate) = (Instant::now(), rate(7, Duration::from_secs(1)));
        let mut bucket = TokenBucket::full(start);
        let mut given = 0;
        for millis in 0..3_600_000 {
            let now = start + Duration::from_millis(millis);
            given += u64::from(bucket.take(rate, now).is_ok());
        }
        // The burst, and 7 for each second; the last millisecond is not quite the end of the hour.
        assert_eq!(given, 7 + 7 * 3600 - 1);
    }

    proptest! {
        #[test]
        fn no_window_gives_more_than_burst_and_refill_and_the_wait_is_exact(
            burst in 1_u32..50,
            period in 1_u64..10_000_000_000,
            steps in prop::collection::vec(0_u64..1_000_000_000, 1..200),
        ) {
            let rate = rate(burst, Duration::from_nanos(period));
            let start = Instant::now();
            let (mut bucket, mut now, mut given) = (TokenBucket::full(start), start, 0_u128);
            for step in steps {
                now += Duration::from_nanos(step);
                match bucket.take(rate, now) {
                    Ok(()) => given += 1,
                    Err(wait) => {
                        let mut early = bucket;
                        prop_assert!(early.take(rate, now + wait - Duration::from_nanos(1)).is_err());
                        let mut later = bucket;
                        prop_assert!(later.take(rate, now + wait).is_ok());
                    }
                }
                let refill = (now - start).as_nanos() * u128::from(burst) / u128::from(period);
                prop_assert!(given <= u128::from(burst) + refill);
            }
        }
    }

    #[test]
    fn each_address_has_its_own_bucket_and_a_network_of_ipv6_has_one() {
        let (now, limit) = (Instant::now(), AddressLimit::new(rate(2, Duration::from_secs(10)), Instant::now()));
        let admitted = |address: &str| limit.admit(address.parse().unwrap(), now).is_ok();
        assert!(admitted("192.0.2.1") && admitted("::ffff:192.0.2.1") && !admitted("192.0.2.1"));
        assert!(admitted("192.0.2.2"));
        assert!(admitted("2001:db8:0:1::1") && admitted("2001:db8:0:1:ffff::2") && !admitted("2001:db8:0:1::3"));
        assert!(admitted("2001:db8:0:2::1"));
    }

    #[test]
    fn an_address_that_waited_is_admitted_again_across_generations() {
        let (start, limit) = (Instant::now(), AddressLimit::new(rate(2, Duration::from_secs(10)), Instant::now()));
        let address = "192.0.2.1".parse().unwrap();
        let admit = |seconds| limit.admit(address, start + Duration::from_secs(seconds));
        assert!(admit(9).is_ok() && admit(9).is_ok());
        let wait = admit(11).unwrap_err();
        assert!(wait <= Duration::from_secs(3), "the bucket moved into the next generation as it was: {wait:?}");
        assert!(admit(14).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_old_addresses_are_forgotten() {
        let (start, limit) = (Instant::now(), AddressLimit::new(rate(1, Duration::from_secs(10)), Instant::now()));
        for address in 0..300_000_u32 {
            let _ = limit.admit(IpAddr::V4(address.into()), start);
        }
        assert!(limit.buckets.len() <= 2 * Buckets::MAX_YOUNG);
        for seconds in [20, 40] {
            limit.admit("192.0.2.1".parse().unwrap(), start + Duration::from_secs(seconds)).unwrap();
        }
        assert_eq!(limit.buckets.len(), 1);
    }
}
