//! Static files, embedded.

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};

/// What a page of ours may load and where it may connect: only from here.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One embedded file.
struct Asset {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($path:literal $file:literal $kind:literal),* $(,)?) => {
        &[$(Asset { path: $path, kind: $kind, bytes: include_bytes!(concat!("../../static/", $file)) }),*]
    };
}

const ASSETS: &[Asset] = assets![
    "/" "index.html" "text/html; charset=utf-8",
    "/chat.js" "chat.js" "text/javascript; charset=utf-8",
    "/chat.css" "chat.css" "text/css; charset=utf-8",
    "/fanwire.js" "fanwire.js" "text/javascript; charset=utf-8",
    "/fanwire.d.ts" "fanwire.d.ts" "text/plain; charset=utf-8",
    "/docs" "docs.html" "text/html; charset=utf-8",
    "/docs.js" "docs.js" "text/javascript; charset=utf-8",
    "/docs.css" "docs.css" "text/css; charset=utf-8",
    "/favicon.svg" "favicon.svg" "image/svg+xml",
];

/// The paths that are served.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ASSETS.iter().map(|asset| asset.path)
}

/// Serves one of [`paths`].
pub async fn serve(request: Request) -> Response {
    let path = request.uri().path();
    let asset = ASSETS.iter().find(|asset| asset.path == path).expect("only the paths in the list are routed here");
    let mut response = asset.bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
