//! Any `Sec-WebSocket-Extensions`, one header line per line, to the negotiation of permessage-deflate.

#![no_main]

use fanwire::wire::deflate::negotiate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| {
    if let Ok(Some(agreement)) = negotiate(header.lines()) {
        assert!(header.contains("permessage-deflate"), "only what was offered is agreed on");
        let restated = agreement.response.contains("server_max_window_bits");
        assert!(!restated || header.contains("server_max_window_bits"), "only what was asked is stated");
    }
});
