//! A client of the native protocol for the terminal: connecting, frames in and out, and what an end means.

use std::{borrow::Cow, time::Duration};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, Uri};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest,
        handshake::client::{Request, Response},
    },
};

/// Which server, and who one is there.
#[derive(Args, Clone)]
pub(super) struct ClientArgs {
    /// The server, ws://127.0.0.1:8080 if left out; ws, wss, http and https will do. FANWIRE_URL sets it too.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The token that says who one is. FANWIRE_TOKEN sets it too, and shows in no list of processes.
    #[arg(long, value_name = "JWT")]
    token: Option<String>,
    /// The app's public key, where the server has several.
    #[arg(long, value_name = "KEY")]
    app: Option<String>,
}

const DEFAULT_URL: &str = "ws://127.0.0.1:8080";
/// How long connecting, or one answer, may take.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The largest frame that is taken: a `history` or `subscribed` frame may be long.
const MAX_FRAME: usize = 64 << 20;

/// A frame from the server, as far as a terminal needs it.
#[derive(Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// A number in answers to us; the publication's id in messages.
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub epoch: Option<Cow<'a, str>>,
    pub offset: Option<u64>,
    pub recovered: Option<bool>,
    #[serde(borrow)]
    pub publication: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub message: Option<Cow<'a, str>>,
    pub retry_after: Option<f64>,
    pub reconnect: Option<bool>,
    pub delay: Option<f64>,
    pub ping: Option<u64>,
    pub member: Option<Member>,
    pub members: Option<Vec<Member>>,
}

/// One member, as far as a terminal shows it.
#[derive(Deserialize)]
pub(super) struct Member {
    pub connection: Option<String>,
    pub user: Option<String>,
}

impl Frame<'_> {
    /// Whether it answers the command that was sent with `id`.
    pub fn answers(&self, id: u64) -> bool {
        self.id.is_some_and(|own| own.get() == id.to_string())
    }

    /// Its code and explanation.
    pub fn reason(&self) -> String {
        let code = self.code.as_deref().unwrap_or("without a code");
        self.message.as_deref().map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"))
    }
}

/// Why there is no connection, or no longer one.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server does not want this client: the same would be refused again.
    Refused(String),
    /// It may go better later, not before `delay`.
    Lost { reason: String, delay: Duration },
}

impl Ended {
    pub fn lost(reason: impl Into<String>) -> Self {
        Self::Lost { reason: reason.into(), delay: Duration::ZERO }
    }

    /// What a close with `code` asks of a client, by the table of close codes.
    fn closed(code: u16, reason: &str) -> Self {
        let text = if reason.is_empty() { format!("closed with {code}") } else { format!("{reason} ({code})") };
        match code {
            1002 | 1003 | 1007 | 1009 | 4100..=4299 => Self::Refused(text),
            _ => Self::lost(text),
        }
    }
}

/// An open connection, after its `welcome`.
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// How long nothing may be heard.
    silence: Duration,
    heard: Instant,
    /// What the last `disconnect` frame said; the close follows it.
    farewell: Option<Ended>,
}

impl Connection {
    /// Connects and waits for the welcome.
    pub async fn open(args: &ClientArgs) -> Result<Self, Ended> {
        let request = args.request()?;
        let config = tungstenite::protocol::WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME));
        let connecting = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        let (socket, _) = match timeout(ANSWER_TIME, connecting).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(refused_upgrade(error)),
            Err(_) => return Err(Ended::lost("no answer in time")),
        };
        let mut connection = Self { socket, silence: ANSWER_TIME, heard: Instant::now(), farewell: None };
        let text = connection.next().await?;
        match parse(&text)? {
            frame if frame.kind == "welcome" => {
                let ping = frame.ping.unwrap_or(25).min(24 * 3600);
                connection.silence = Duration::from_secs(ping) + ANSWER_TIME;
                Ok(connection)
            }
            _ => Err(Ended::Refused("that is no Fanwire server: its first frame is no welcome".into())),
        }
    }

    /// Sends one frame.
    pub async fn send(&mut self, frame: String) -> Result<(), Ended> {
        match timeout(ANSWER_TIME, self.socket.send(Message::text(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Ended::lost(error.to_string())),
            Err(_) => Err(Ended::lost("the server takes nothing any more")),
        }
    }

    /// The next text frame that is no farewell; ends when nothing at all was heard for longer than the server promised.
    pub async fn next(&mut self) -> Result<Utf8Bytes, Ended> {
        loop {
            let Ok(message) = timeout_at(self.heard + self.silence, self.socket.next()).await else {
                return Err(Ended::lost("nothing was heard for too long"));
            };
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => match parse(&text) {
                    Ok(frame) if frame.kind == "disconnect" => self.farewell = Some(farewell(&frame)),
                    _ => return Ok(text),
                },
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((1005, Utf8Bytes::default()), |f| (f.code.into(), f.reason));
                    return Err(self.farewell.take().unwrap_or_else(|| Ended::closed(code, &reason)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(self.farewell.take().unwrap_or_else(|| Ended::lost(error.to_string()))),
                None => return Err(self.farewell.take().unwrap_or_else(|| Ended::lost("the connection ended"))),
            }
        }
    }

    /// Says goodbye, for as long as the server takes to hear it, and a second at most.
    pub async fn close(mut self) {
        let goodbye = async {
            if self.socket.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // Late or not: the process ends next.
        let _ = timeout(Duration::from_secs(1), goodbye).await;
    }
}

/// Reads a frame.
pub(super) fn parse(text: &str) -> Result<Frame<'_>, Ended> {
    serde_json::from_str(text).map_err(|error| Ended::lost(format!("the server sent no frame of ours: {error}")))
}

/// How long to wait before the `attempt`-th connection since the last good one, counted from 0: at random up to a bound
/// that doubles from 500 ms to 30 s ("full jitter", so that clients that were cut off together do not return together).
pub(super) fn back_off(attempt: u32) -> Duration {
    let bound = Duration::from_millis(500).saturating_mul(1 << attempt.min(6)).min(Duration::from_secs(30));
    bound.mul_f64(rand::random::<f64>())
}

/// Seconds from the server, which may be anything: at most an hour.
pub(super) fn seconds(from_server: Option<f64>) -> Duration {
    let seconds = from_server.filter(|seconds| seconds.is_finite()).unwrap_or_default();
    Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
}

fn farewell(frame: &Frame<'_>) -> Ended {
    let token_ended = frame.code.as_deref().is_some_and(|code| code.starts_with("token_"));
    match frame.reconnect {
        // Its token is all that this client has: with the same one it would end the same way.
        Some(true) if !token_ended => Ended::Lost { reason: frame.reason(), delay: seconds(frame.delay) },
        _ => Ended::Refused(frame.reason()),
    }
}

fn refused_upgrade(error: tungstenite::Error) -> Ended {
    match error {
        tungstenite::Error::Http(response) => {
            let status = response.status();
            let text = format!("the server answered {status}{}", problem(&response));
            match status {
                StatusCode::TOO_MANY_REQUESTS => Ended::lost(text),
                status if status.is_server_error() => Ended::lost(text),
                _ => Ended::Refused(text),
            }
        }
        tungstenite::Error::Url(error) => Ended::Refused(error.to_string()),
        error => Ended::lost(error.to_string()),
    }
}

/// What the problem document in `response` says.
fn problem(response: &Response) -> String {
    #[derive(Deserialize)]
    struct Problem {
        code: Option<String>,
        detail: Option<String>,
    }
    let body = response.body().as_deref().unwrap_or_default();
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else { return String::new() };
    [problem.code, problem.detail].into_iter().flatten().map(|part| format!(": {part}")).collect()
}

impl ClientArgs {
    fn request(&self) -> Result<Request, Ended> {
        let refused = |problem: String| Ended::Refused(problem);
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = self.url.clone().or_else(|| set("FANWIRE_URL")).unwrap_or_else(|| DEFAULT_URL.into());
        let uri =
            endpoint(&url, self.app.as_deref()).ok_or_else(|| refused(format!("{url:?} is no address of a server")))?;
        let mut request = uri.into_client_request().map_err(|error| refused(error.to_string()))?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("fanwire.v1"));
        if let Some(token) = self.token.clone().or_else(|| set("FANWIRE_TOKEN")) {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| refused("the token has characters that no token has".into()))?;
            value.set_sensitive(true);
            request.headers_mut().insert("Authorization", value);
        }
        Ok(request)
    }
}

/// The socket's address on the server at `url`; a path that is there is kept, for servers behind a prefix.
fn endpoint(url: &str, app: Option<&str>) -> Option<Uri> {
    let with_scheme = if url.contains("://") { url.into() } else { format!("ws://{url}") };
    let uri: Uri = with_scheme.parse().ok()?;
    let scheme = match uri.scheme_str()? {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return None,
    };
    let path = uri.path().trim_end_matches('/');
    let path = if path.ends_with("/v1/ws") { path.into() } else { format!("{path}/v1/ws") };
    let app = app
        .map(|app| format!("app={}", percent_encoding::utf8_percent_encode(app, percent_encoding::NON_ALPHANUMERIC)));
    let query: Vec<_> = uri.query().map(str::to_owned).into_iter().chain(app).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let host = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    format!("{scheme}://{host}{path}{query}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_named_in_many_ways() {
        for (url, app, expected) in [
            ("ws://127.0.0.1:8080", None, "ws://127.0.0.1:8080/v1/ws"),
            ("https://a.example/", None, "wss://a.example/v1/ws"),
            ("localhost:1", Some("a&b"), "ws://localhost:1/v1/ws?app=a%26b"),
            ("wss://a.example/live/v1/ws?x=1", Some("k"), "wss://a.example/live/v1/ws?x=1&app=k"),
        ] {
            assert_eq!(endpoint(url, app).map(|uri| uri.to_string()).as_deref(), Some(expected), "{url}");
        }
        for bad in ["", "ftp://a", "ws://", "ws://user:pw@host", "a b"] {
            assert_eq!(endpoint(bad, None), None, "{bad}");
        }
    }

    #[test]
    fn the_close_code_says_whether_to_come_back() {
        for (code, again) in [(1000, true), (1001, true), (1006, true), (4000, true), (4099, true)] {
            assert_eq!(matches!(Ended::closed(code, ""), Ended::Lost { .. }), again, "{code}");
        }
        for code in [1002, 1003, 1007, 1009, 4100, 4104, 4200, 4201] {
            assert!(matches!(Ended::closed(code, ""), Ended::Refused(_)), "{code}");
        }
    }

    #[test]
    fn waiting_is_bounded_whatever_is_asked() {
        for attempt in [0, 1, 6, 7, 31, 32, u32::MAX] {
            assert!(back_off(attempt) <= Duration::from_secs(30));
        }
        assert!(back_off(0) <= Duration::from_millis(500));
        for (asked, expected) in [(None, 0), (Some(f64::NAN), 0), (Some(-1.0), 0), (Some(1e300), 3600), (Some(2.0), 2)]
        {
            assert_eq!(seconds(asked), Duration::from_secs(expected));
        }
    }
}
