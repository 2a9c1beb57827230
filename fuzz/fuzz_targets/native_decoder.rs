//! Any text as one frame of the native protocol: the decoder answers everything with commands or refusals.

#![no_main]

use fanwire::{
    domain::{Command, CommandId, Event, HistoryQuery, IdempotencyKey, Reply, Start},
    protocol::{
        Codec,
        native::{MAX_DEPTH, Native, depth_exceeds},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &str| {
    let mut requests = Vec::new();
    Native.decode(frame, &mut requests);
    assert!(!requests.is_empty(), "every frame is answered");
    for request in &requests {
        if let Some(CommandId::Text(text)) = &request.id {
            assert!(text.len() <= CommandId::MAX_BYTES);
        }
        match &request.command {
            Err(refusal) => {
                let mut out = Vec::new();
                Native.encode_reply(request.id.as_ref(), &Reply::Refused(refusal.clone()), &mut out);
                serde_json::from_slice::<serde::de::IgnoredAny>(&out).expect("a refusal is JSON");
            }
            Ok(command) => check(command, frame),
        }
    }
});

/// What holds for every command, wherever it came from.
fn check(command: &Command, frame: &str) {
    match command {
        Command::Publish(publish) => {
            let data = publish.event.data.as_str();
            serde_json::from_str::<serde::de::IgnoredAny>(data).expect("data is JSON");
            assert!(!depth_exceeds(data, MAX_DEPTH));
            assert!((1..=Event::MAX_NAME_BYTES).contains(&publish.event.name().len()));
            assert!(publish.key.as_ref().is_none_or(|key| key.as_str().len() <= IdempotencyKey::MAX_BYTES));
            // The bytes are those that came, line breaks between tokens apart.
            assert!(frame.replace(['\n', '\r'], " ").contains(data));
        }
        Command::Subscribe(subscribe) => {
            assert!(!matches!(subscribe.start, Start::Last(last) if HistoryQuery::MAX_LIMIT < last));
        }
        Command::History { query, .. } => assert!(query.limit <= HistoryQuery::MAX_LIMIT),
        _ => {}
    }
}
