//! May this identity do this to this channel? A pure function of the namespace and of what tokens allow.

use crate::{
    config::{Access, NamespaceConfig},
    domain::{Action, Actions, ChannelName, ErrorCode, Identity, Refusal},
};

/// Checks that `action` is allowed on `channel`.
///
/// `grant` is what a subscription token allows there, given with the command or held by the subscription; it adds to
/// what the connection's own token allows. Whether the channel has history or presence at all is not asked here.
///
/// - `subscribe` and `publish` go to whom the namespace names.
/// - `history` and `presence` go to whomever the namespace lets subscribe; where that is `token`, a token names them.
/// - `call` and `consume` must always be named.
///
/// # Errors
/// `unauthorized` for an anonymous connection, which a token may help; `forbidden` for an identity without the right.
pub fn check(
    action: Action,
    channel: &ChannelName,
    namespace: &NamespaceConfig,
    identity: Option<&Identity>,
    grant: Option<Actions>,
) -> Result<(), Refusal> {
    let access = match action {
        Action::Subscribe | Action::History | Action::Presence => namespace.subscribe,
        Action::Publish => namespace.publish,
        Action::Call | Action::Consume => Access::Token,
    };
    let granted = || grant.is_some_and(|actions| actions.contains(action));
    let named = || granted() || identity.is_some_and(|identity| identity.allows(action, channel));
    let allowed = match access {
        Access::Anyone => true,
        // An anonymous connection with a subscription token is no user; its token speaks for what it names alone.
        Access::User => identity.is_some() || granted(),
        Access::Token => named(),
        Access::Nobody => false,
    };
    match (allowed, identity) {
        (true, _) => Ok(()),
        (false, None) => Err(refusal(ErrorCode::Unauthorized, "an anonymous connection", action, channel)),
        (false, Some(_)) => Err(refusal(ErrorCode::Forbidden, "this token", action, channel)),
    }
}

fn refusal(code: ErrorCode, who: &str, action: Action, channel: &ChannelName) -> Refusal {
    Refusal::new(code, format!("{who} has no right to `{}` on `{channel}`", action.name())).in_channel(channel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grant;
    use crate::domain::{Stamp, TokenId};

    type Maybe<'a> = Option<&'a [Action]>;

    const ANONYMOUS: Maybe<'static> = None;
    const ACCESS: [Access; 4] = [Access::Anyone, Access::User, Access::Token, Access::Nobody];

    fn decide(
        action: Action,
        (subscribe, publish): (Access, Access),
        identity: Maybe<'_>,
        grant: Maybe<'_>,
    ) -> Result<(), ErrorCode> {
        let namespace = NamespaceConfig { subscribe, publish, ..NamespaceConfig::default() };
        let identity = identity.map(|actions| Identity {
            user: "ann".parse().unwrap(),
            stamp: Stamp { id: TokenId::from_bits(1), issued: None },
            info: None,
            expires: None,
            grants: vec![Grant {
                channels: vec!["room:*".parse().unwrap()],
                actions: actions.iter().copied().collect(),
            }],
        });
        let grant = grant.map(|actions| actions.iter().copied().collect());
        check(action, &"room:1".parse().unwrap(), &namespace, identity.as_ref(), grant).map_err(|refusal| refusal.code)
    }

    #[test]
    fn subscribing_and_publishing_follow_their_own_setting() {
        use ErrorCode::{Forbidden, Unauthorized};
        for action in [Action::Subscribe, Action::Publish] {
            let on = |access, identity: Maybe<'_>, grant: Maybe<'_>| {
                // The other setting is the opposite, so that reading the wrong one shows.
                let other = if access == Access::Anyone { Access::Nobody } else { Access::Anyone };
                let accesses = if action == Action::Subscribe { (access, other) } else { (other, access) };
                decide(action, accesses, identity, grant)
            };
            for (access, anonymous, user, holder) in [
                (Access::Anyone, Ok(()), Ok(()), Ok(())),
                (Access::User, Err(Unauthorized), Ok(()), Ok(())),
                (Access::Token, Err(Unauthorized), Err(Forbidden), Ok(())),
                (Access::Nobody, Err(Unauthorized), Err(Forbidden), Err(Forbidden)),
            ] {
                assert_eq!(on(access, ANONYMOUS, None), anonymous, "anonymous, {action:?}, {access:?}");
                assert_eq!(on(access, Some(&[]), None), user, "user, {action:?}, {access:?}");
                assert_eq!(on(access, Some(&[action]), None), holder, "named, {action:?}, {access:?}");
                assert_eq!(on(access, Some(&[]), Some(&[action])), holder, "granted, {action:?}, {access:?}");
            }
            assert_eq!(on(Access::Token, ANONYMOUS, Some(&[action])), Ok(()));
            assert_eq!(on(Access::User, ANONYMOUS, Some(&[action])), Ok(()));
            assert_eq!(on(Access::User, ANONYMOUS, Some(&[Action::History])), Err(Unauthorized));
            assert_eq!(on(Access::Nobody, ANONYMOUS, Some(&[action])), Err(Unauthorized));
        }
    }

    #[test]
    fn history_and_presence_go_with_subscribing_but_a_token_names_them() {
        for action in [Action::History, Action::Presence] {
            let on = |access, identity: Maybe<'_>, grant: Maybe<'_>| {
                decide(action, (access, Access::Anyone), identity, grant)
            };
            assert_eq!(on(Access::Anyone, ANONYMOUS, None), Ok(()));
            assert_eq!(on(Access::User, ANONYMOUS, None), Err(ErrorCode::Unauthorized));
            assert_eq!(on(Access::User, Some(&[]), None), Ok(()));
            assert_eq!(on(Access::Token, Some(&[Action::Subscribe]), None), Err(ErrorCode::Forbidden));
            assert_eq!(on(Access::Token, Some(&[]), Some(&[Action::Subscribe])), Err(ErrorCode::Forbidden));
            assert_eq!(on(Access::Token, Some(&[action]), None), Ok(()));
            assert_eq!(on(Access::Token, ANONYMOUS, Some(&[action])), Ok(()));
            assert_eq!(on(Access::Nobody, Some(&[action]), None), Err(ErrorCode::Forbidden));
        }
    }

    #[test]
    fn calling_and_consuming_must_be_named_wherever_it_is() {
        for action in [Action::Call, Action::Consume] {
            for access in ACCESS {
                let on = |identity: Maybe<'_>, grant: Maybe<'_>| decide(action, (access, access), identity, grant);
                assert_eq!(on(ANONYMOUS, None), Err(ErrorCode::Unauthorized));
                assert_eq!(on(Some(&[Action::Subscribe, Action::Publish]), None), Err(ErrorCode::Forbidden));
                assert_eq!(on(Some(&[action]), None), Ok(()));
            }
        }
    }

    #[test]
    fn a_grant_for_other_channels_is_none_for_this_one() {
        let identity = Identity {
            user: "ann".parse().unwrap(),
            stamp: Stamp { id: TokenId::from_bits(1), issued: None },
            info: None,
            expires: None,
            grants: vec![Grant {
                channels: vec!["room:*".parse().unwrap()],
                actions: [Action::Subscribe].into_iter().collect(),
            }],
        };
        let namespace = NamespaceConfig::default();
        let code = |channel: &str| {
            let channel = channel.parse().unwrap();
            check(Action::Subscribe, &channel, &namespace, Some(&identity), None).map_err(|refusal| refusal.code)
        };
        assert_eq!(code("room:1"), Ok(()));
        assert_eq!(code("room:1:2"), Err(ErrorCode::Forbidden));
        assert_eq!(code("news"), Err(ErrorCode::Forbidden));
    }
}
