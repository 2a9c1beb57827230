//! Which tokens are revoked, as far as this node knows: a table that is asked once for each token that is checked.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use crate::domain::{AppId, Revocation, Revoked, Stamp, TokenId, UserId};

/// The most revocations, of all apps: some 40 MB.
pub(super) const MAX_REVOCATIONS: usize = 200_000;
/// From how many on it is looked for those that are over.
const FIRST_SWEEP: usize = 1024;

/// All revocations. They survive a reload, and an app's leaving and coming back.
#[derive(Default)]
pub(super) struct Revocations(RwLock<Table>);

#[derive(Default)]
struct Table {
    users: HashMap<(AppId, UserId), Cut>,
    /// Until when each is remembered.
    tokens: HashMap<(AppId, TokenId), u64>,
    sweep_at: usize,
}

/// A user's tokens from before this second, until all of them have ended.
#[derive(Clone, Copy, Default)]
struct Cut {
    before: u64,
    until: u64,
}

impl Revocations {
    /// Notes one; of several for a user the latest counts, and the longest. `now` in seconds since 1970.
    pub fn add(&self, revocation: Revocation, now: u64) {
        let Revocation { app, tokens, until } = revocation;
        // Changed in one piece, so what a panic left behind is still whole.
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match tokens {
            Revoked::User(user, before) => {
                let cut = table.users.entry((app, user)).or_default();
                *cut = Cut { before: cut.before.max(before), until: cut.until.max(until) };
            }
            Revoked::Token(id) => {
                let kept = table.tokens.entry((app, id)).or_default();
                *kept = until.max(*kept);
            }
        }
        if table.sweep_at.max(FIRST_SWEEP) <= table.len() {
            table.users.retain(|_, cut| now < cut.until);
            table.tokens.retain(|_, until| now < *until);
            table.sweep_at = 2 * table.len();
        }
    }

    /// Whether a token of `user` with this stamp counts no more.
    pub fn cover(&self, app: &AppId, user: Option<&UserId>, stamp: Stamp, now: u64) -> bool {
        let table = self.read();
        if table.len() == 0 {
            return false;
        }
        let cut = user.and_then(|user| table.users.get(&(app.clone(), user.clone())));
        let is_cut = cut.is_some_and(|cut| now < cut.until && stamp.issued.is_none_or(|issued| issued < cut.before));
        is_cut || table.tokens.get(&(app.clone(), stamp.id)).is_some_and(|until| now < *until)
    }

    /// Whether there are as many as there may be.
    pub fn is_full(&self, now: u64) -> bool {
        let table = self.read();
        let in_force = || {
            table.users.values().filter(|cut| now < cut.until).count()
                + table.tokens.values().filter(|until| now < **until).count()
        };
        MAX_REVOCATIONS <= table.len() && MAX_REVOCATIONS <= in_force()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppId {
        name.parse().unwrap()
    }

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    fn stamp(id: u128, issued: Option<u64>) -> Stamp {
        Stamp { id: TokenId::from_bits(id), issued }
    }

    fn revoke(table: &Revocations, tokens: Revoked, until: u64) {
        table.add(Revocation { app: app("shop"), tokens, until }, 100);
    }

    #[test]
    fn a_user_s_tokens_from_before_count_no_more_and_later_ones_do() {
        let table = Revocations::default();
        revoke(&table, Revoked::User(user("ann"), 50), 1000);
        revoke(&table, Revoked::User(user("ann"), 40), 900);
        let ann = user("ann");
        let is_refused = |issued, now| table.cover(&app("shop"), Some(&ann), stamp(1, issued), now);
        assert!(is_refused(Some(49), 100) && is_refused(None, 100) && is_refused(Some(1), 999));
        assert!(!is_refused(Some(50), 100) && !is_refused(Some(1), 1000));
        assert!(!table.cover(&app("bank"), Some(&ann), stamp(1, None), 100));
        assert!(!table.cover(&app("shop"), Some(&user("bob")), stamp(1, None), 100));
        assert!(!table.cover(&app("shop"), None, stamp(1, None), 100));
    }

    #[test]
    fn a_token_counts_no_more_whoever_s_it_is() {
        let table = Revocations::default();
        revoke(&table, Revoked::Token(TokenId::from_bits(7)), 1000);
        assert!(table.cover(&app("shop"), None, stamp(7, Some(99)), 100));
        assert!(!table.cover(&app("shop"), None, stamp(8, Some(99)), 100));
        assert!(!table.cover(&app("bank"), None, stamp(7, Some(99)), 100));
    }

    #[test]
    fn what_is_over_is_forgotten_and_the_number_is_bounded() {
        let table = Revocations::default();
        for id in 0..10_000 {
            revoke(&table, Revoked::Token(TokenId::from_bits(id)), 100);
        }
        assert!(table.read().len() <= 2 * FIRST_SWEEP, "{}", table.read().len());
        for id in 0..MAX_REVOCATIONS as u128 {
            assert!(!table.is_full(100));
            revoke(&table, Revoked::Token(TokenId::from_bits(id)), 1000);
        }
        assert!(table.is_full(100) && !table.is_full(1000));
    }
}
