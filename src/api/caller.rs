//! Who calls: one of the application's servers by API key, or a client by token.

use std::{
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, OnceLock},
};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::{Api, Problem};
use crate::{
    config::ApiScope,
    domain::{AppId, ErrorCode, Identity, Refusal},
    gateway::{
        App, Gateway,
        opening::{Opening, bearer},
    },
    node::{Caller, CallerKind},
};

/// Whose call it turned out to be, for the access log; a request extension.
#[derive(Clone, Debug, Default)]
pub struct Whose(Arc<OnceLock<AppId>>);

impl Whose {
    /// The app, once it is known.
    pub fn app(&self) -> Option<&AppId> {
        self.0.get()
    }

    fn note(parts: &Parts, app: &App) {
        if let Some(Self(whose)) = parts.extensions.get() {
            whose.get_or_init(|| app.id.clone());
        }
    }
}

/// The client's address, as trusted proxies tell it; a request extension.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// What an API key has to be good for, as a type, so that no handler can forget to ask.
pub trait Scope {
    /// The scope.
    const SCOPE: ApiScope;
}

/// Publishing.
pub struct Publishing;
/// Reading channels, history and presence.
pub struct Reading;
/// Dropping history and steering connections.
pub struct Managing;

impl Scope for Publishing {
    const SCOPE: ApiScope = ApiScope::Publish;
}

impl Scope for Reading {
    const SCOPE: ApiScope = ApiScope::Read;
}

impl Scope for Managing {
    const SCOPE: ApiScope = ApiScope::Manage;
}

/// One of the application's servers, whose API key is good for `S`.
pub struct Server<S> {
    app: Arc<App>,
    scope: PhantomData<S>,
}

impl<S: Scope> Server<S> {
    /// The app that it acts in.
    pub fn app(&self) -> &AppId {
        &self.app.id
    }

    /// It, as the node sees it.
    pub fn caller(&self) -> Caller<'_> {
        Caller { app: &self.app.id, kind: CallerKind::Server }
    }

    fn identify(gateway: &Gateway, parts: &Parts) -> Result<Self, Problem> {
        let caller = gateway.api_caller(bearer(&parts.headers))?;
        Whose::note(parts, &caller.app);
        match caller.scopes.contains(S::SCOPE) {
            true => Ok(Self { app: caller.app, scope: PhantomData }),
            false => {
                let wanted = serde_json::to_string(&S::SCOPE).unwrap_or_default();
                let message = format!("this API key does not allow {wanted} (`api_keys` in the configuration)");
                Err(Refusal::new(ErrorCode::Forbidden, message).into())
            }
        }
    }
}

impl<S: Scope> FromRequestParts<Api> for Server<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Self::identify(api.node.gateway(), parts)
    }
}

/// A client, with its token or anonymous.
pub struct Client {
    /// The app that it acts in.
    pub app: Arc<App>,
    /// Who it is; `None` for an anonymous one.
    pub identity: Option<Identity>,
    /// From where it calls.
    pub address: IpAddr,
}

impl Client {
    /// It, as the node sees it.
    pub fn caller(&self) -> Caller<'_> {
        let kind = CallerKind::Client { identity: self.identity.as_ref(), connection: None, granted: None };
        Caller { app: &self.app.id, kind }
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// There is no such app, or the token was refused.
    pub async fn identify(gateway: &Gateway, parts: &Parts) -> Result<Self, Problem> {
        let Opening { app, token } = Opening::read(gateway, &parts.uri, &parts.headers);
        let app = app.ok_or_else(|| Refusal::new(ErrorCode::Unauthorized, "no app has this key (`?app=`)"))?;
        Whose::note(parts, &app);
        let identity = match token {
            None => None,
            Some(token) => Some(app.authenticate(&token).await.map_err(|error| {
                tracing::debug!(%error, "token refused");
                error.refusal()
            })?),
        };
        let address = parts.extensions.get::<ClientAddress>().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.0);
        Ok(Self { app, identity, address })
    }
}

impl FromRequestParts<Api> for Client {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Self::identify(api.node.gateway(), parts).await
    }
}

/// Who reads history or presence: a server, or a client whom the namespace lets.
pub enum Reader {
    /// By API key.
    Server(Server<Reading>),
    /// By token, or anonymous.
    Client(Client),
}

impl Reader {
    /// It, as the node sees it.
    pub fn caller(&self) -> Caller<'_> {
        match self {
            Self::Server(server) => server.caller(),
            Self::Client(client) => client.caller(),
        }
    }
}

impl FromRequestParts<Api> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let gateway = api.node.gateway();
        match bearer(&parts.headers) {
            // A JWT has three parts; whatever else stands there is meant as an API key, and refused as one.
            Some(bearer) if bearer.split('.').count() != 3 || gateway.api_caller(Some(bearer)).is_ok() => {
                Server::identify(gateway, parts).map(Self::Server)
            }
            _ => Client::identify(gateway, parts).await.map(Self::Client),
        }
    }
}
