//! Which address a client has, where proxies stand between.
//!
//! A proxy appends the address that it saw to a header, so only the entries that trusted proxies wrote are worth
//! anything: those at the right, up to and including the first that is no trusted proxy itself. Everything left of that
//! is the client's own invention. Start at [`Proxies::client`].

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::config::{AddressHeader, HttpConfig};

/// The most entries that are read, from the right; no chain of proxies is longer.
const MAX_HOPS: usize = 32;
/// The longest entry that can be an address: `for="[…]:65535";proto=https;by=…;host=…` with room to spare.
const MAX_ENTRY_BYTES: usize = 512;

/// Whose word is taken for a client's address, and in which header.
pub(super) struct Proxies {
    trusted: Vec<IpNet>,
    header: AddressHeader,
}

impl Proxies {
    pub(super) fn new(config: &HttpConfig) -> Self {
        Self { trusted: config.trusted_proxies.clone(), header: config.address_header }
    }

    /// The address of the client behind `peer`: the right-most hop that is not trusted. An entry that is no address
    /// ends the walk at the hop that wrote it.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines = headers.get_all(self.name()).iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).take(MAX_HOPS);
        while self.is_trusted(client) {
            match entries.next().and_then(|entry| self.read(entry)) {
                Some(hop) => client = hop,
                None => break,
            }
        }
        client
    }

    /// Whether `peer`, whom nobody trusts, sent a header that a proxy would send: the sign of a missing setting.
    pub(super) fn is_suspicious(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        !self.is_trusted(peer.to_canonical()) && headers.contains_key(self.name())
    }

    pub(super) fn name(&self) -> HeaderName {
        match self.header {
            AddressHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            AddressHeader::Forwarded => header::FORWARDED,
        }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    fn read(&self, entry: &[u8]) -> Option<IpAddr> {
        let entry = Some(entry).filter(|entry| entry.len() <= MAX_ENTRY_BYTES)?;
        let entry = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
        let node = match self.header {
            AddressHeader::XForwardedFor => entry,
            AddressHeader::Forwarded => forwarded_for(entry)?,
        };
        address(node)
    }
}

/// The one `for` of an element of `Forwarded` (RFC 7239, 4), without its quotes.
///
/// Elements are split at every comma, in quotes too: an address has none, and so an opening quote that a client sends
/// cannot swallow what the proxies append.
fn forwarded_for(element: &str) -> Option<&str> {
    let mut found = None;
    for pair in element.split(';') {
        let Some((name, value)) = pair.trim_matches([' ', '\t']).split_once('=') else { continue };
        if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
    }
    let value = found?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => node.parse().or_else(|_| node.parse().map(|socket: SocketAddr| socket.ip())).ok()?,
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn client(header: AddressHeader, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let trusted_proxies = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).to_vec();
        let proxies = Proxies::new(&HttpConfig { trusted_proxies, address_header: header, ..HttpConfig::default() });
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_right_most_hop_that_is_not_trusted_wins() {
        for (peer, value, expected) in [
            ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.9,192.0.2.1,10.0.0.2", "192.0.2.1"),
            ("10.0.0.1", "  192.0.2.1  ", "192.0.2.1"),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
            ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1"),
            ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
            ("fd00::1", "2001:db8::1", "2001:db8::1"),
            // A peer whom nobody trusts may say what it likes.
            ("192.0.2.7", "192.0.2.1", "192.0.2.7"),
            ("11.0.0.1", "192.0.2.1", "11.0.0.1"),
            ("::ffff:192.0.2.7", "192.0.2.1", "192.0.2.7"),
            // What is no address ends the walk where it stands.
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "unknown", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.1, garbage", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.1, garbage, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "192.0.2.1, , 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "192.0.2.1,", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.256", "10.0.0.1"),
            ("10.0.0.1", "192.0.2", "10.0.0.1"),
            ("10.0.0.1", "3221225985", "10.0.0.1"),
            ("10.0.0.1", "0xc0.0.2.1", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.1:99999", "10.0.0.1"),
            ("10.0.0.1", "[192.0.2.1]", "10.0.0.1"),
            ("10.0.0.1", "[2001:db8::1", "10.0.0.1"),
            ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
            ("10.0.0.1", "for=192.0.2.1", "10.0.0.1"),
            ("10.0.0.1", "\u{ff11}92.0.2.1", "10.0.0.1"),
            ("10.0.0.1", "192.0.2.1 192.0.2.2", "10.0.0.1"),
        ] {
            assert_eq!(client(AddressHeader::XForwardedFor, peer, &[("x-forwarded-for", value)]), expected, "{value}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=192.0.2.1;proto=https;by=203.0.113.43", "192.0.2.1"),
            ("proto=https; for=\"192.0.2.1:4711\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=192.0.2.9, for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
            ("for=\"evil, for=192.0.2.1", "192.0.2.1"),
            ("for=192.0.2.1, for=unknown", "10.0.0.1"),
            ("for=192.0.2.1, for=_hidden", "10.0.0.1"),
            ("for=192.0.2.1, proto=https", "10.0.0.1"),
            ("for=192.0.2.1;for=192.0.2.2", "10.0.0.1"),
            ("192.0.2.1", "10.0.0.1"),
            ("for=\"192.0.2.1", "10.0.0.1"),
            ("for=\"", "10.0.0.1"),
            ("forwarded=192.0.2.1", "10.0.0.1"),
            ("for = 192.0.2.1", "10.0.0.1"),
            (";;;", "10.0.0.1"),
        ] {
            assert_eq!(client(AddressHeader::Forwarded, "10.0.0.1", &[("forwarded", value)]), expected, "{value}");
        }
    }

    #[test]
    fn several_lines_are_one_list_and_the_other_header_is_the_client_s_own() {
        let lines = [("x-forwarded-for", "192.0.2.9"), ("x-forwarded-for", "192.0.2.1, 10.0.0.2")];
        assert_eq!(client(AddressHeader::XForwardedFor, "10.0.0.1", &lines), "192.0.2.1");
        let both = [("forwarded", "for=192.0.2.9"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(client(AddressHeader::XForwardedFor, "10.0.0.1", &both), "192.0.2.1");
        assert_eq!(client(AddressHeader::Forwarded, "10.0.0.1", &both), "192.0.2.9");
        assert_eq!(client(AddressHeader::Forwarded, "10.0.0.1", &both[1..]), "10.0.0.1");
        assert_eq!(client(AddressHeader::XForwardedFor, "10.0.0.1", &both[..1]), "10.0.0.1");
    }

    #[test]
    fn a_megabyte_of_header_takes_no_time_and_no_more_hops_than_there_are() {
        let began = Instant::now();
        let long = "1".repeat(1 << 20);
        assert_eq!(client(AddressHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &long)]), "10.0.0.1");
        let many = format!("192.0.2.1{}", ",10.0.0.2".repeat(100_000));
        assert_eq!(client(AddressHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &many)]), "10.0.0.2");
        let commas = ",".repeat(1 << 20);
        assert_eq!(client(AddressHeader::Forwarded, "10.0.0.1", &[("forwarded", &commas)]), "10.0.0.1");
        // A step for each pair of hops would take minutes.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    #[test]
    fn a_missing_setting_shows() {
        let proxies = Proxies::new(&HttpConfig::default());
        let headers = HeaderMap::from_iter([(proxies.name(), HeaderValue::from_static("192.0.2.1"))]);
        assert!(proxies.is_suspicious("10.0.0.1".parse().unwrap(), &headers));
        assert!(!proxies.is_suspicious("10.0.0.1".parse().unwrap(), &HeaderMap::new()));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_none_moves_an_untrusted_peer(value in "[ -~]{0,80}", for_value in "(for=|\"|,|;|[0-9.:\\[\\]]){0,40}") {
            for header in [AddressHeader::XForwardedFor, AddressHeader::Forwarded] {
                for value in [&value, &for_value] {
                    let lines = [("x-forwarded-for", value.as_str()), ("forwarded", value.as_str())];
                    prop_assert_eq!(client(header, "192.0.2.7", &lines), "192.0.2.7");
                    client(header, "10.0.0.1", &lines);
                }
            }
        }
    }
}
