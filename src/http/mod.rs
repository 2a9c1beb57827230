//! The HTTP side: which path leads to which handler, behind which layers, and how connections are served.

pub mod assets;
mod collect;
mod events;
mod health;
mod layers;
mod openapi;
mod router;
mod serve;
mod upgrade;

pub use self::{
    collect::{BrokerStatus, HubFigures},
    router::{metrics_router, router},
    serve::{Listening, serve},
};
