//! Where the broker is: `broker.url`, read once into a type that cannot be wrong afterwards.
//!
//! | form | means |
//! | --- | --- |
//! | `memory:` | the broker inside this process |
//! | `redis://[user[:password]@]host[:port][/database]` | one Redis |
//! | `redis+sentinel://[user[:password]@]host[:port],…/master[/database]` | the primary that these Sentinels name |
//! | `redis+cluster://[user[:password]@]host[:port],…` | a cluster, found by any of these nodes |
//!
//! `rediss` in place of `redis` means TLS. User and password are percent-encoded, IPv6 addresses stand in brackets.
//! Nothing here shows a password: neither `Debug` and `Display`, nor an error. Start at [`BrokerUrl::from_str`].

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::print::MASK;

/// Redis's port.
const REDIS_PORT: u16 = 6379;
/// Sentinel's port.
const SENTINEL_PORT: u16 = 26379;
/// The longest host name, in bytes (RFC 1035, 2.3.4, as text).
const MAX_HOST: usize = 253;
/// What a user name shows encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where the broker is and how to reach it.
///
/// Invariant: at least one host, unless it is [`BrokerKind::Memory`], which has none; exactly one where it is
/// [`BrokerKind::Standalone`]; database 0 where it is [`BrokerKind::Cluster`].
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// What it is.
    pub kind: BrokerKind,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The ACL user; `None` for the default one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Names or addresses (IPv6 without brackets), each with its port: of Sentinels, where it is Sentinel.
    pub hosts: Vec<(String, u16)>,
    /// The number of the database.
    pub database: u32,
}

/// What carries publications between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Nothing: there is one node.
    Memory,
    /// One Redis.
    Standalone,
    /// The primary that Sentinels name.
    Sentinel {
        /// What they call it.
        master: String,
    },
    /// A Redis Cluster.
    Cluster,
}

/// Why a text is no broker's URL. Never holds the password, nor what may be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBrokerUrl {
    /// No scheme that is known.
    #[error(
        "begins with none of memory:, redis://, rediss://, redis+sentinel://, rediss+sentinel://, redis+cluster:// and \
         rediss+cluster://"
    )]
    Scheme,
    /// Something after `memory:`.
    #[error("is written `memory:`, with nothing after it")]
    Memory,
    /// A path or a query that holds an `@`, or a second `@`.
    #[error("has an `@`, `/`, `?` or `#` in its user or password: write it %40, %2F, %3F or %23")]
    Unencoded,
    /// A `%` without two hexadecimal digits, or bytes that are no text.
    #[error("has a `%` in its user or password that encodes nothing: a `%` itself is written %25")]
    Encoding,
    /// A query or a fragment.
    #[error("takes nothing after `?` or `#`")]
    Query,
    /// No host, or an empty one between commas.
    #[error("names no host")]
    NoHost,
    /// A host that cannot be one.
    #[error("has a host that is no name and no address: letters, digits, `-`, `_` and `.`, at most 253 bytes")]
    Host,
    /// An IPv6 address without its brackets, or no address in brackets.
    #[error("has a host that is no IPv6 address in brackets, such as [::1]:6379")]
    Ipv6,
    /// A port out of range.
    #[error("has a port that is no number from 1 to 65535, at host {host}")]
    Port {
        /// Which host it is, counted from 1.
        host: usize,
    },
    /// Several hosts where there is one.
    #[error("names several hosts: that is redis+sentinel:// or redis+cluster://")]
    SeveralHosts,
    /// Sentinel without the name of what is watched.
    #[error("names no primary: redis+sentinel://host:26379/mymaster, with letters, digits, `-`, `_` and `.`")]
    NoMaster,
    /// A path that is no database's number.
    #[error("has a database that is no number")]
    Database,
    /// A path where it is a cluster.
    #[error("names a database: a cluster has none")]
    ClusterDatabase,
}

impl FromStr for BrokerUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = raw.strip_prefix("memory:") {
            return if rest.is_empty() { Ok(Self::memory()) } else { Err(InvalidBrokerUrl::Memory) };
        }
        let (scheme, rest) = raw.split_once("://").ok_or(InvalidBrokerUrl::Scheme)?;
        let scheme = Scheme::named(scheme).ok_or(InvalidBrokerUrl::Scheme)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if path.contains('@') || authority.matches('@').count() > 1 {
            return Err(InvalidBrokerUrl::Unencoded);
        }
        if path.contains(['?', '#']) {
            return Err(InvalidBrokerUrl::Query);
        }
        let (user, hosts) = authority.split_once('@').unwrap_or(("", authority));
        let (username, password) = credentials(user)?;
        let hosts = hosts.split(',').enumerate();
        let hosts = hosts.map(|(at, text)| host(text, at + 1, scheme.port())).collect::<Result<Vec<_>, _>>()?;
        let path = path.strip_prefix('/').unwrap_or_default();
        let (kind, database) = scheme.place(path, hosts.len())?;
        Ok(Self { kind, tls: scheme.tls, username, password, hosts, database })
    }
}

/// What stands before `://`.
#[derive(Clone, Copy)]
struct Scheme {
    form: Form,
    tls: bool,
}

#[derive(Clone, Copy)]
enum Form {
    Standalone,
    Sentinel,
    Cluster,
}

impl Scheme {
    fn named(name: &str) -> Option<Self> {
        let (base, form) = match name.split_once('+') {
            None => (name, Form::Standalone),
            Some((base, "sentinel")) => (base, Form::Sentinel),
            Some((base, "cluster")) => (base, Form::Cluster),
            Some(_) => return None,
        };
        match base {
            "redis" => Some(Self { form, tls: false }),
            "rediss" => Some(Self { form, tls: true }),
            _ => None,
        }
    }

    fn port(self) -> u16 {
        match self.form {
            Form::Standalone | Form::Cluster => REDIS_PORT,
            Form::Sentinel => SENTINEL_PORT,
        }
    }

    /// What `path`, without its leading slash, says of so many hosts.
    fn place(self, path: &str, hosts: usize) -> Result<(BrokerKind, u32), InvalidBrokerUrl> {
        match self.form {
            Form::Standalone if hosts != 1 => Err(InvalidBrokerUrl::SeveralHosts),
            Form::Standalone => Ok((BrokerKind::Standalone, database(path)?)),
            Form::Sentinel => {
                let (master, rest) = path.split_once('/').unwrap_or((path, ""));
                match is_name(master) {
                    true => Ok((BrokerKind::Sentinel { master: master.into() }, database(rest)?)),
                    false => Err(InvalidBrokerUrl::NoMaster),
                }
            }
            Form::Cluster if path.is_empty() => Ok((BrokerKind::Cluster, 0)),
            Form::Cluster => Err(InvalidBrokerUrl::ClusterDatabase),
        }
    }
}

/// User and password of what stands before the `@`. Without a user, an empty password is none.
fn credentials(text: &str) -> Result<(Option<String>, Option<String>), InvalidBrokerUrl> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = Some(decoded(user)?).filter(|user| !user.is_empty());
    let password = password.map(decoded).transpose()?.filter(|password| user.is_some() || !password.is_empty());
    Ok((user, password))
}

fn decoded(text: &str) -> Result<String, InvalidBrokerUrl> {
    let encodes = |after: &str| after.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(encodes) {
        return Err(InvalidBrokerUrl::Encoding);
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| InvalidBrokerUrl::Encoding)
}

/// The `number`-th host, such as `redis.example:6379` or `[::1]`.
fn host(text: &str, number: usize, default: u16) -> Result<(String, u16), InvalidBrokerUrl> {
    let (name, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']').ok_or(InvalidBrokerUrl::Ipv6)?;
        let address: Ipv6Addr = address.parse().map_err(|_| InvalidBrokerUrl::Ipv6)?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or(InvalidBrokerUrl::Ipv6)?),
        };
        (address.to_string(), port)
    } else {
        let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
        match name {
            _ if text.parse::<Ipv6Addr>().is_ok() => return Err(InvalidBrokerUrl::Ipv6),
            "" => return Err(InvalidBrokerUrl::NoHost),
            name if MAX_HOST < name.len() || !is_name(name) => return Err(InvalidBrokerUrl::Host),
            name => (name.into(), port),
        }
    };
    let port = match port {
        None => default,
        Some(port) => number_in(port).filter(|port| *port != 0).ok_or(InvalidBrokerUrl::Port { host: number })?,
    };
    Ok((name, port))
}

fn database(path: &str) -> Result<u32, InvalidBrokerUrl> {
    if path.is_empty() { Ok(0) } else { number_in(path).ok_or(InvalidBrokerUrl::Database) }
}

/// A number in digits alone: `parse` by itself takes a sign too.
fn number_in<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The characters of host names, and of what Sentinels call a primary (`sentinel.conf`).
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

impl BrokerUrl {
    /// `memory:`.
    fn memory() -> Self {
        Self { kind: BrokerKind::Memory, tls: false, username: None, password: None, hosts: Vec::new(), database: 0 }
    }

    /// The hosts to which a password would go in the clear over a network that may be anybody's.
    pub(super) fn exposed(&self) -> impl Iterator<Item = &str> {
        let in_the_clear = !self.tls && self.password.is_some();
        let hosts = self.hosts.iter().map(|(host, _)| host.as_str());
        hosts.filter(move |host| in_the_clear && !is_private(host))
    }
}

/// Whether `host` is on this machine or, by its address or the look of its name, on a network of one's own.
fn is_private(host: &str) -> bool {
    /// Endings that no public name has: RFC 6762 and 8375, ICANN's for private use, Kubernetes's.
    const ENDINGS: [&str; 7] = [".local", ".home.arpa", ".internal", ".svc", ".lan", ".localhost", ".test"];
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            let [first, second, ..] = address.octets();
            // RFC 6598: between a provider and its customers, and in overlay networks.
            let is_shared = first == 100 && (64..128).contains(&second);
            address.is_private() || address.is_loopback() || address.is_link_local() || is_shared
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
        // A name of one part is that of a neighbour: a container, a service, an entry of /etc/hosts.
        Err(_) => !host.contains('.') || ENDINGS.iter().any(|ending| host.to_ascii_lowercase().ends_with(ending)),
    }
}

impl fmt::Display for BrokerUrl {
    /// As it may be written, with the password masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        match &self.kind {
            BrokerKind::Memory => return f.write_str("memory:"),
            BrokerKind::Standalone => write!(f, "{scheme}://")?,
            BrokerKind::Sentinel { .. } => write!(f, "{scheme}+sentinel://")?,
            BrokerKind::Cluster => write!(f, "{scheme}+cluster://")?,
        }
        let user = self.username.as_deref().unwrap_or_default();
        match (&self.username, &self.password) {
            (None, None) => {}
            (_, Some(_)) => write!(f, "{}:{MASK}@", utf8_percent_encode(user, ENCODED))?,
            (Some(_), None) => write!(f, "{}@", utf8_percent_encode(user, ENCODED))?,
        }
        for (at, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match host.contains(':') {
                true => write!(f, "{comma}[{host}]:{port}")?,
                false => write!(f, "{comma}{host}:{port}")?,
            }
        }
        match &self.kind {
            BrokerKind::Sentinel { master } => write!(f, "/{master}/{}", self.database),
            BrokerKind::Standalone => write!(f, "/{}", self.database),
            BrokerKind::Memory | BrokerKind::Cluster => Ok(()),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

#[cfg(test)]
mod tests;
