//! The scripts: one library of functions where Redis has functions (7.0), each a script of its own where it has not.
//!
//! Functions cost Redis a sixth less than scripts (docs/architecture.md). Their names hold a digest of the text, so nodes
//! of two versions can work on one Redis, each with its own.

use std::sync::LazyLock;

use redis::{Cmd, RedisError, ToRedisArgs, aio::MultiplexedConnection};

const COMMON: &str = include_str!("lua/common.lua");
const ALL: [(Script, &str); Script::COUNT] = [
    (Script::Publish, include_str!("lua/publish.lua")),
    (Script::Read, include_str!("lua/read.lua")),
    (Script::Renew, include_str!("lua/renew.lua")),
    (Script::Join, include_str!("lua/join.lua")),
    (Script::Leave, include_str!("lua/leave.lua")),
    (Script::Sweep, include_str!("lua/sweep.lua")),
    (Script::Hold, include_str!("lua/hold.lua")),
    (Script::Claim, include_str!("lua/claim.lua")),
    (Script::Fence, include_str!("lua/fence.lua")),
    (Script::Era, include_str!("lua/era.lua")),
    (Script::Order, include_str!("lua/order.lua")),
    (Script::Orders, include_str!("lua/orders.lua")),
    (Script::Revoke, include_str!("lua/revoke.lua")),
];

/// The closed list of scripts; each file in `lua/` says what it is given and what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Publish,
    Read,
    Renew,
    Join,
    Leave,
    Sweep,
    Hold,
    Claim,
    Fence,
    Era,
    Order,
    Orders,
    Revoke,
}

impl Script {
    const COUNT: usize = 13;
}

/// What one script is called by.
struct Loaded {
    function: String,
    text: String,
    digest: String,
}

/// All scripts as texts, with the library that they make.
struct Library {
    scripts: [Loaded; Script::COUNT],
    text: String,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let whole = ALL.map(|(_, body)| body).join("\n");
    let digest = redis::Script::new(&format!("{COMMON}{whole}")).get_hash().to_owned();
    let name = format!("fanwire_{}", &digest[..12]);
    let mut text = format!("#!lua name={name}\n{COMMON}\n");
    let scripts = ALL.map(|(script, body)| {
        let function = format!("{name}_{}", format!("{script:?}").to_lowercase());
        // What is needed to get out of a full memory again, or only to look, is done even then.
        let flags = if script == Script::Publish { "" } else { "'allow-oom'" };
        text.push_str(&format!(
            "redis.register_function{{ function_name = '{function}', flags = {{ {flags} }}, \
             callback = function(KEYS, ARGV)\n{body}end }}\n"
        ));
        let script = format!("{COMMON}\n{body}");
        Loaded { function, digest: redis::Script::new(&script).get_hash().to_owned(), text: script }
    });
    Library { scripts, text }
});

/// How scripts are called on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `FCALL`.
    Functions,
    /// `EVALSHA`.
    Scripts,
}

impl Script {
    /// A call with these keys, to which the arguments are added.
    pub fn call(self, dialect: Dialect, keys: &[impl ToRedisArgs]) -> Cmd {
        let loaded = &LIBRARY.scripts[self as usize];
        let mut command = match dialect {
            Dialect::Functions => redis::cmd("FCALL"),
            Dialect::Scripts => redis::cmd("EVALSHA"),
        };
        match dialect {
            Dialect::Functions => command.arg(&loaded.function),
            Dialect::Scripts => command.arg(&loaded.digest),
        };
        command.arg(keys.len());
        keys.iter().for_each(|key| {
            command.arg(key);
        });
        command
    }
}

/// Makes the scripts known to a server and finds out how they are called there.
pub(super) async fn load(connection: &mut MultiplexedConnection) -> Result<Dialect, RedisError> {
    let loaded = redis::cmd("FUNCTION").arg("LOAD").arg(&LIBRARY.text).exec_async(connection).await;
    match loaded {
        Ok(()) => return Ok(Dialect::Functions),
        Err(error) if error.to_string().contains("already exists") => return Ok(Dialect::Functions),
        Err(error) if error.is_io_error() || is_passing(&error) => return Err(error),
        // Older than 7.0, or not allowed to.
        Err(error) => tracing::debug!(%error, "functions cannot be used, scripts are"),
    }
    for script in &LIBRARY.scripts {
        redis::cmd("SCRIPT").arg("LOAD").arg(&script.text).exec_async(connection).await?;
    }
    Ok(Dialect::Scripts)
}

/// Whether a server says that it does not know our scripts (any more).
pub(super) fn is_unknown(error: &str) -> bool {
    error.contains("NOSCRIPT") || error.contains("NoScript") || error.contains("Function not found")
}

/// Whether a server says that it cannot answer just now, or that another one has to.
fn is_passing(error: &RedisError) -> bool {
    matches!(error.code(), Some("LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY" | "TRYAGAIN"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_s_number_is_its_place_in_the_list() {
        for (at, (script, _)) in ALL.into_iter().enumerate() {
            assert_eq!(script as usize, at);
        }
    }
}
