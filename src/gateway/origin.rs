//! May this page connect? Browsers say in `Origin` which page asks, and a page cannot change that.
//!
//! A request without `Origin` is not a page's (or it is a page's own harmless GET) and passes: no cookie identifies
//! anybody here, so there is nothing that another page could abuse. Origins are compared as parsed scheme, host and
//! port; never as text, and never by a part of it. Start at [`Origins::check`].

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName, header};

use crate::domain::{ErrorCode, Refusal};

/// How much of a refused origin is quoted, in characters.
const QUOTED_CHARACTERS: usize = 100;

/// Which pages may connect besides those of the same origin.
pub(super) struct Origins {
    any: bool,
    listed: Vec<Origin>,
    /// Whether only names of this machine's loopback are taken as `Host`: in development mode anybody may do everything,
    /// and a foreign page could get there by letting its own name point to 127.0.0.1 (DNS rebinding).
    only_loopback: bool,
}

/// A page's origin (RFC 6454), in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    /// `None` only for a scheme whose port nobody knows.
    port: Option<u16>,
}

impl Origins {
    /// # Errors
    /// The texts that are neither an origin nor `*`.
    pub(super) fn new(allowed: &[String], only_loopback: bool) -> Result<Self, Vec<String>> {
        let (mut any, mut listed, mut wrong) = (false, Vec::new(), Vec::new());
        for text in allowed {
            match Origin::parse(text) {
                _ if text == "*" => any = true,
                Some(origin) => listed.push(origin),
                None => wrong.push(text.clone()),
            }
        }
        match wrong.is_empty() {
            true => Ok(Self { any, listed, only_loopback }),
            false => Err(wrong),
        }
    }

    /// Whether a request with `headers` may pass; `tls` if it came to us encrypted.
    pub(super) fn check(&self, headers: &HeaderMap, tls: bool) -> Result<(), Refusal> {
        self.check_host(headers)?;
        let host = one(headers, header::HOST)?;
        let Some(text) = one(headers, header::ORIGIN)? else { return Ok(()) };
        let allowed =
            |origin: Origin| self.listed.contains(&origin) || host.is_some_and(|host| origin.is_at(host, tls));
        match self.any || Origin::parse(text).is_some_and(allowed) {
            true => Ok(()),
            false => {
                let quoted: String = text.chars().take(QUOTED_CHARACTERS).collect();
                Err(Refusal::new(ErrorCode::Forbidden, format!("the origin {quoted:?} is not in http.allowed_origins")))
            }
        }
    }
}

impl Origins {
    /// Whether the server may be called what a request calls it.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = one(headers, header::HOST)?;
        match self.only_loopback && !host.and_then(split_host).is_some_and(|(host, _)| is_loopback(&host)) {
            false => Ok(()),
            true => {
                let message = "in development mode the server answers only to localhost, 127.0.0.1 and [::1]";
                Err(Refusal::new(ErrorCode::Forbidden, message))
            }
        }
    }
}

/// The one value of a header that makes sense only once.
fn one(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, Refusal> {
    let refused = |what| Err(Refusal::new(ErrorCode::Forbidden, format!("the header `{name}` {what}")));
    let mut values = headers.get_all(&name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (_, Some(_)) => refused("is there twice"),
        (Some(Err(_)), _) => refused("is not ASCII"),
        (Some(Ok(value)), None) => Ok(Some(value)),
        (None, None) => Ok(None),
    }
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(known) {
            return None;
        }
        let (host, port) = split_host(authority)?;
        let port = port.or(default_port(&scheme));
        Some(Self { scheme, host, port })
    }

    /// Whether this is the server's own page, as `host` names the server.
    ///
    /// The schemes are not compared, since TLS may end at a proxy. So a `Host` without a port means the port of the
    /// page's scheme, unless TLS ends here and makes it 443.
    fn is_at(&self, host: &str, tls: bool) -> bool {
        let Some((host, port)) = split_host(host) else { return false };
        let web = matches!(self.scheme.as_str(), "http" | "https");
        let port = port.or(if tls { Some(443) } else { default_port(&self.scheme) });
        web && self.host == host && self.port == port
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// A host in lower case, and its port: `name`, `name:port`, `[address]`, `[address]:port`; nothing else, no user either.
fn split_host(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']')?;
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), rest)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            let name = Some(&authority[..end]).filter(|name| !name.is_empty() && name.bytes().all(known))?;
            (name.to_ascii_lowercase(), &authority[end..])
        }
    };
    match rest.strip_prefix(':') {
        None => rest.is_empty().then_some((host, None)),
        // `u16` would take a sign.
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()).then_some((host, Some(port.parse().ok()?))),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || bare.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(origin: Option<&str>, host: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::ORIGIN, origin), (header::HOST, host)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
        }
        headers
    }

    fn origins(allowed: &[&str]) -> Origins {
        Origins::new(&allowed.iter().map(ToString::to_string).collect::<Vec<_>>(), false).unwrap()
    }

    #[test]
    fn a_page_of_the_same_host_and_port_passes_and_no_other() {
        for (origin, host, passes) in [
            ("http://example.com", "example.com", true),
            ("https://example.com", "example.com", true),
            ("https://example.com:443", "example.com", true),
            ("https://example.com", "example.com:443", true),
            ("http://example.com", "example.com:80", true),
            ("HTTPS://Example.COM", "eXample.com", true),
            ("http://localhost:8080", "localhost:8080", true),
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("http://[::1]:8080", "[::1]:8080", true),
            ("http://[0:0::1]:8080", "[::1]:8080", true),
            ("https://good", "good", true),
            ("http://example.com:8080", "example.com", false),
            ("http://example.com", "example.com:8080", false),
            ("https://example.com", "example.com:80", false),
            ("http://example.com:81", "example.com:80", false),
            ("https://other.com", "example.com", false),
            ("https://good.evil", "good", false),
            ("https://evilgood", "good", false),
            ("https://good", "good.evil", false),
            ("https://sub.example.com", "example.com", false),
            ("https://example.com.", "example.com", false),
            ("http://localhost:8080", "127.0.0.1:8080", false),
            ("null", "example.com", false),
            ("", "example.com", false),
            ("example.com", "example.com", false),
            ("file://", "example.com", false),
            ("file:///", "example.com", false),
            ("://example.com", "example.com", false),
            ("//example.com", "example.com", false),
            ("https:example.com", "example.com", false),
            ("https://", "example.com", false),
            ("https://:443", "example.com", false),
            ("https://example.com/", "example.com", false),
            ("https://example.com/path", "example.com", false),
            ("https://example.com?q", "example.com", false),
            ("https://example.com#f", "example.com", false),
            ("https://user@example.com", "example.com", false),
            ("https://example.com@evil.com", "example.com", false),
            ("https://evil.com@example.com", "example.com", false),
            ("https://example.com:", "example.com", false),
            ("https://example.com:+443", "example.com", false),
            ("https://example.com:4430", "example.com", false),
            ("https://example.com:65979", "example.com", false),
            ("https://example.com:443:443", "example.com", false),
            ("https://example.com, https://evil.com", "example.com", false),
            ("https://evil.com https://example.com", "example.com", false),
            ("https://example.com\\.evil.com", "example.com", false),
            ("https://example%2ecom", "example.com", false),
            ("https://exämple.com", "exämple.com", false),
            ("https://[::1", "[::1", false),
            ("https://[::1]evil.com", "[::1]", false),
            ("ftp://example.com", "example.com", false),
            ("chrome-extension://example.com", "example.com", false),
            ("javascript://example.com", "example.com", false),
            ("*", "example.com", false),
            ("https://*", "example.com", false),
        ] {
            let result = origins(&[]).check(&request(Some(origin), Some(host)), false);
            assert_eq!(result.is_ok(), passes, "{origin} at {host}");
        }
        assert!(origins(&[]).check(&request(Some("http://example.com"), None), false).is_err());
    }

    #[test]
    fn where_tls_ends_here_a_host_without_port_is_443() {
        let check = |origin| origins(&[]).check(&request(Some(origin), Some("example.com")), true).is_ok();
        assert!(check("https://example.com"));
        assert!(!check("http://example.com"));
    }

    #[test]
    fn no_origin_is_no_page() {
        assert!(origins(&[]).check(&request(None, Some("example.com")), false).is_ok());
        assert!(origins(&[]).check(&request(None, None), false).is_ok());
    }

    #[test]
    fn the_list_is_compared_whole() {
        let origins = origins(&["https://example.com", "http://localhost:3000", "capacitor://localhost"]);
        for (origin, passes) in [
            ("https://example.com", true),
            ("https://example.com:443", true),
            ("https://EXAMPLE.com", true),
            ("http://localhost:3000", true),
            ("capacitor://localhost", true),
            ("http://example.com", false),
            ("http://example.com:443", false),
            ("https://example.com:444", false),
            ("https://example.com.evil", false),
            ("https://evil-example.com", false),
            ("https://a.example.com", false),
            ("http://localhost", false),
            ("https://localhost:3000", false),
            ("ionic://localhost", false),
            ("null", false),
        ] {
            assert_eq!(origins.check(&request(Some(origin), Some("api.test")), false).is_ok(), passes, "{origin}");
        }
    }

    #[test]
    fn a_star_is_any_page_but_only_where_it_is_written() {
        let any = origins(&["*"]);
        for origin in ["https://evil.com", "null", "file://", "nonsense"] {
            assert!(any.check(&request(Some(origin), Some("example.com")), false).is_ok(), "{origin}");
        }
        for wrong in ["https://*.example.com", "example.com", "https://example.com/", "null", "", "https://*"] {
            assert_eq!(Origins::new(&[wrong.to_owned()], false).err(), Some(vec![wrong.to_owned()]), "{wrong}");
        }
    }

    #[test]
    fn a_header_that_is_there_twice_or_is_not_ascii_is_refused() {
        let mut twice = request(Some("https://example.com"), Some("example.com"));
        twice.append(header::ORIGIN, HeaderValue::from_static("https://evil.com"));
        assert!(origins(&[]).check(&twice, false).is_err());
        let mut hosts = request(Some("https://evil.com"), Some("example.com"));
        hosts.append(header::HOST, HeaderValue::from_static("evil.com"));
        assert!(origins(&[]).check(&hosts, false).is_err());
        let binary = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_bytes(b"http://\xff").unwrap())]);
        assert!(origins(&[]).check(&binary, false).is_err());
    }

    #[test]
    fn in_development_mode_only_loopback_names_are_hosts() {
        let origins = Origins::new(&["*".to_owned()], true).unwrap();
        for (host, passes) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("app.localhost:8080", true),
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]", true),
            ("rebound.evil.com:8080", false),
            ("localhost.evil.com", false),
            ("evillocalhost", false),
            ("192.168.0.7:8080", false),
            ("0.0.0.0:8080", false),
            ("127.0.0.1.evil.com", false),
            ("2130706433", false),
            ("localhost:8080@evil.com", false),
            ("", false),
        ] {
            assert_eq!(origins.check(&request(None, Some(host)), false).is_ok(), passes, "{host}");
        }
        assert!(origins.check(&request(None, None), false).is_err());
    }

    #[test]
    fn a_refusal_quotes_a_bounded_part_of_the_origin() {
        let origin = format!("https://{}", "e".repeat(10_000));
        let refusal = origins(&[]).check(&request(Some(&origin), Some("example.com")), false).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Forbidden);
        assert!(refusal.message.len() < 200);
    }
}
