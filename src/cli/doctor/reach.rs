//! What has to be reached, or to be free: ports, and the URLs that keys come from.

use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant, SystemTime},
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Finding, Level};
use crate::{
    broker::redis::examine::{self, Verdict},
    config::{BrokerConfig, BrokerKind, BrokerUrl, Config},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest key set that the server takes.
const MAX_JWKS: usize = 256 << 10;

/// Looks at everything that is somewhere else, and at the ports.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<_> = config.listen.iter().map(|address| port("listen", *address)).collect();
    if let Ok(address) = config.metrics_listen.parse() {
        let mut finding = port("metrics_listen", address);
        if finding.level == Level::Fail && config.is_development() {
            finding.level = Level::Warn; // The server starts without it then.
        }
        findings.push(finding);
    }
    findings.extend(broker(&config.broker).await);
    for (at, app) in config.apps.iter().enumerate() {
        if !app.tokens.jwks_url.is_empty() {
            findings.push(jwks(&format!("app[{at}].tokens.jwks_url"), &app.tokens.jwks_url).await);
        }
    }
    findings
}

/// What there is to say of the broker. A URL that is none was told of with the configuration.
async fn broker(config: &BrokerConfig) -> Vec<Finding> {
    let Ok(url) = config.url.parse::<BrokerUrl>() else { return Vec::new() };
    if url.kind == BrokerKind::Memory {
        return vec![Finding::ok("broker", "memory: history ends with the process, and no other node shares it")];
    }
    let found = examine::examine(&url, config).await;
    let level = |verdict| match verdict {
        Verdict::Good => Level::Ok,
        Verdict::Advice => Level::Warn,
        Verdict::Bad => Level::Fail,
    };
    found.into_iter().map(|found| Finding { level: level(found.verdict), what: found.what, text: found.text }).collect()
}

fn port(what: &'static str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(what, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::fail(what, format!("{address} is taken: by a server that runs already? `ss -ltnp` tells by whom"))
        }
        Err(error) => Finding::fail(what, format!("{address}: {error}")),
    }
}

/// Fetches a key set as the server would, and compares the clocks on the way.
async fn jwks(key: &str, url: &str) -> Finding {
    const WHAT: &str = "keys";
    let started = Instant::now();
    match timeout(PATIENCE, fetch(url)).await {
        Err(_) => Finding::fail(WHAT, format!("{key}: no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(problem)) => Finding::fail(WHAT, format!("{key}: {problem}")),
        Ok(Ok(fetched)) => {
            let text = format!("{key}: {} keys in {} ms", fetched.keys, started.elapsed().as_millis());
            match fetched.skew {
                _ if fetched.keys == 0 => Finding::fail(WHAT, format!("{key}: answers, but lists no key")),
                Some(skew) if 30 < skew => Finding::warn(
                    WHAT,
                    format!("{text}; its clock and ours are {skew} s apart, and tokens are judged by ours: use NTP"),
                ),
                _ => Finding::ok(WHAT, text),
            }
        }
    }
}

struct Fetched {
    keys: usize,
    /// Seconds between the server's clock and ours.
    skew: Option<u64>,
}

async fn fetch(url: &str) -> Result<Fetched, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| format!("no root certificates: {error}"))?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let uri = url.parse().map_err(|_| "is no address".to_owned())?;
    let response = client.get(uri).await.map_err(|error| cause(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("answers {}", response.status()));
    }
    let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).and_then(seconds_of);
    let body = Limited::new(response.into_body(), MAX_JWKS).collect().await;
    let body = body.map_err(|_| format!("sends no whole answer of at most {MAX_JWKS} bytes"))?.to_bytes();
    let set: Set =
        serde_json::from_slice(&body).map_err(|_| "answers with something else than a JWK set".to_owned())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Fetched { keys: set.keys.len(), skew: date.map(|date| date.abs_diff(now)) })
}

/// The innermost reason: the outer ones only say that there was one.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The seconds since 1970 of an HTTP date, such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
fn seconds_of(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = date.strip_suffix(" GMT")?.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second] = parts[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let number = |text: &str| text.parse::<u64>().ok();
    let (day, year) = (number(day)?, number(year).filter(|year| (1970..10_000).contains(year))?);
    // Days since 1970 by Howard Hinnant's days_from_civil: years begin in March, eras have 400 of them.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let clock = number(hour)? * 3600 + number(minute)? * 60 + number(second)?;
    (days.checked_sub(719_468)?).checked_mul(86_400)?.checked_add(clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read() {
        assert_eq!(seconds_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds_of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds_of("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        for bad in ["", "yesterday", "Sun, 06 Nox 1994 08:49:37 GMT", "Sun, 00 Nov 1994 08:49:37 GMT"] {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }
}
