//! Reading and dropping history.

use super::{Caller, Node, broker_refusal, described, retention};
use crate::domain::{Action, ChannelName, ErrorCode, HistoryQuery, HistoryReply, Refusal};

impl Node {
    /// Reads a part of a channel's history.
    ///
    /// # Errors
    /// Not allowed, nothing is kept there, or the broker's failure.
    pub async fn history(
        &self,
        caller: &Caller<'_>,
        name: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryReply, Refusal> {
        let (channel, namespace) = self.admit(caller, Action::History, name)?;
        let retention = retention(&namespace).ok_or_else(|| disabled(name))?;
        let query = HistoryQuery { limit: query.limit.min(HistoryQuery::MAX_LIMIT), ..query };
        let history = self.broker.history(&channel, retention, query).await;
        let history = history.map_err(|error| broker_refusal(error, name))?;
        Ok(HistoryReply { channel: name.clone(), position: history.top, publications: history.publications })
    }

    /// Drops a channel's history; its subscribers are told.
    ///
    /// # Errors
    /// As [`Node::history`].
    pub async fn drop_history(&self, caller: &Caller<'_>, name: &ChannelName) -> Result<(), Refusal> {
        let (channel, namespace) = self.admit(caller, Action::History, name)?;
        retention(&namespace).ok_or_else(|| disabled(name))?;
        self.broker.drop_history(&channel).await.map_err(|error| broker_refusal(error, name))
    }
}

fn disabled(name: &ChannelName) -> Refusal {
    let message = format!("{} keeps no history", described(name));
    Refusal::new(ErrorCode::HistoryDisabled, message).in_channel(name)
}
