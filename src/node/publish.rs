//! Publishing: check, stamp, hand to the broker.
//!
//! This is the hot path, first of three: everything that is published, over whatever protocol, comes through
//! [`Node::publish`].

use super::{Caller, CallerKind, Node, ROOM_DEADLINE, broker_refusal, retention};
use crate::{
    broker::{ScopedKey, Submission},
    config::NamespaceConfig,
    domain::{Action, ConnectionId, ErrorCode, PublicationId, Publish, Published, Publisher, Refusal, UnixMillis},
};

impl Node {
    /// Publishes an event. `exclude` names a connection that does not get it, in place of `echo`.
    ///
    /// # Errors
    /// Not allowed, no such namespace, too large, or the broker's failure.
    pub async fn publish(
        &self,
        caller: &Caller<'_>,
        publish: Publish,
        exclude: Option<ConnectionId>,
    ) -> Result<Published, Refusal> {
        let Publish { channel: name, event, key, echo } = publish;
        let (channel, namespace) = self.admit(caller, Action::Publish, &name)?;
        let (data_bytes, limit) = (event.data.as_bytes().len(), namespace.max_data);
        if limit.0 < data_bytes {
            let message = format!("`data` has {data_bytes} bytes, the most is {}", limit.0);
            return Err(Refusal::new(ErrorCode::TooLarge, message).in_channel(&name));
        }
        self.hub
            .room(ROOM_DEADLINE)
            .await
            .map_err(|overloaded| Refusal::new(ErrorCode::Unavailable, overloaded.to_string()).in_channel(&name))?;
        let time = UnixMillis::now();
        let own = match caller.kind {
            CallerKind::Client { connection, .. } if !echo => connection,
            _ => None,
        };
        let submission = Submission {
            channel,
            event,
            id: PublicationId::new(time.0, rand::random()),
            time,
            from: publisher(caller, &namespace),
            exclude: exclude.or(own),
            key: key.map(|key| ScopedKey { scope: caller.key_scope(), key }),
            retention: retention(&namespace),
        };
        match self.broker.publish(submission).await {
            Ok(accepted) => {
                self.metrics.publication(caller.app, name.namespace(), caller.source());
                Ok(Published { channel: name, publication: accepted.id, position: accepted.position })
            }
            Err(error) => Err(broker_refusal(error, &name)),
        }
    }
}

/// Who published, as far as the namespace shows it.
fn publisher(caller: &Caller<'_>, namespace: &NamespaceConfig) -> Option<Publisher> {
    let CallerKind::Client { identity, connection, .. } = caller.kind else { return None };
    if !namespace.show_publisher {
        return None;
    }
    let user = identity.map(|identity| identity.user.clone());
    let connection = connection.filter(|_| namespace.presence);
    (user.is_some() || connection.is_some()).then_some(Publisher { user, connection })
}
