//! `fanwire token`: makes a token for trying things, or says what one is worth.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{DONE, FAULT, USAGE, block_on, load, terminal};
use crate::{
    config::{AppConfig, Config, Flags, Span},
    domain::{Action, Actions, ChannelName, Pattern, UnixMillis, UserId},
    gateway::{self, Gateway, Verified},
};

#[derive(Args)]
#[command(
    after_help = "The secret is that of the configuration, or FANWIRE_SECRET. Exit codes: 0 done, 1 no secret, or \
                        the token is refused, 2 wrong usage."
)]
pub(super) struct TokenArgs {
    /// Who the token is for; may be left out in a subscription token, for an anonymous connection.
    #[arg(long, value_name = "NAME", required_unless_present_any = ["verify", "channel"])]
    user: Option<String>,
    /// A capability, such as 'room:*=subscribe,publish'; may be repeated. With --channel only the actions.
    #[arg(long, value_name = "PATTERN=ACTIONS")]
    allow: Vec<String>,
    /// Make a subscription token, for this channel alone.
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<String>,
    /// How long it is good, such as 90s, 1h or 7d.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: Span,
    /// What others may see of the user, as JSON.
    #[arg(long, value_name = "JSON")]
    info: Option<String>,
    /// The app, by its key; the only one, or `default`, if left out.
    #[arg(long, value_name = "KEY")]
    app: Option<String>,
    /// Say what this token is worth here, or why it is refused; `-` reads it from standard input.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["user", "allow", "channel", "info"])]
    verify: Option<String>,
    /// The configuration file; environment variables (FANWIRE_…) go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const HOW_TO_SET_A_SECRET: &str = "no app has a secret or key: this is development mode, where no token is needed and none \
                                   is checked. To try tokens, give server and this command the same secret:\n\
                                   \x20 export FANWIRE_SECRET=$(openssl rand -hex 32)";

pub(super) fn run(args: TokenArgs) -> ExitCode {
    let config = match load(args.config.clone(), Flags { listen: Vec::new(), insecure: true }) {
        Ok((loaded, _)) => loaded.config,
        Err(code) => return code,
    };
    if config.is_development() {
        HOW_TO_SET_A_SECRET.lines().for_each(terminal::say);
        return ExitCode::from(FAULT);
    }
    if let Some(token) = &args.verify {
        return match read(token) {
            Ok(token) => block_on(verify(&config, args.app.as_deref(), &token)),
            Err(error) => {
                terminal::say(&format!("cannot read standard input: {error}"));
                ExitCode::from(FAULT)
            }
        };
    }
    let claims = match claims(&args) {
        Ok(claims) => claims,
        Err(problem) => {
            terminal::say(&problem);
            return ExitCode::from(USAGE);
        }
    };
    match mint(&config, args.app.as_deref(), claims) {
        Ok(token) => {
            // Whoever closes the pipe wanted no token.
            let _ = terminal::print(&token);
            ExitCode::from(DONE)
        }
        Err(problem) => {
            terminal::say(&problem);
            ExitCode::from(FAULT)
        }
    }
}

fn read(token: &str) -> io::Result<String> {
    match token {
        "-" => io::read_to_string(io::stdin()).map(|text| text.trim().into()),
        token => Ok(token.into()),
    }
}

/// What the token says, as far as the command line knows it.
fn claims(args: &TokenArgs) -> Result<Map<String, Value>, String> {
    let mut claims = Map::new();
    if let Some(user) = &args.user {
        let user: UserId = user.parse().map_err(|_| "--user takes 1 to 255 bytes without control characters")?;
        claims.insert("sub".into(), json!(user.as_str()));
    }
    let now = UnixMillis::now().0 / 1000;
    claims.insert("iat".into(), json!(now));
    claims.insert("exp".into(), json!(now.saturating_add(args.ttl.0.as_secs())));
    if let Some(info) = &args.info {
        let info: Value = serde_json::from_str(info).map_err(|error| format!("--info is no JSON: {error}"))?;
        claims.insert("info".into(), info);
    }
    if let Some(channel) = &args.channel {
        channel.parse::<ChannelName>().map_err(|error| format!("--channel: {error}"))?;
        claims.insert("channel".into(), json!(channel));
        let wanted = args.allow.iter().map(|text| actions(text)).collect::<Result<Vec<_>, _>>()?.concat();
        if !wanted.is_empty() {
            claims.insert("do".into(), json!(wanted));
        }
    } else if !args.allow.is_empty() {
        let grants = args.allow.iter().map(|text| grant(text)).collect::<Result<Vec<_>, _>>()?;
        claims.insert("allow".into(), json!(grants));
    }
    Ok(claims)
}

/// Reads `room:*=subscribe,publish`.
fn grant(text: &str) -> Result<Value, String> {
    let (pattern, wanted) = text.rsplit_once('=').ok_or_else(|| {
        format!("--allow {text}: write a channel pattern and actions, such as 'room:*=subscribe,publish'")
    })?;
    let pattern: Pattern = pattern.parse().map_err(|error| format!("--allow {text}: {error}"))?;
    Ok(json!({ "channels": [pattern.as_str()], "do": actions(wanted)? }))
}

fn actions(text: &str) -> Result<Vec<&'static str>, String> {
    let action = |name: &str| {
        Action::from_name(name.trim()).map(Action::name).ok_or_else(|| {
            let known = Action::ALL.map(Action::name).join(", ");
            format!("--allow: {:?} is no action; there are {known}", name.trim())
        })
    };
    text.split(',').map(action).collect()
}

fn mint(config: &Config, key: Option<&str>, mut claims: Map<String, Value>) -> Result<String, String> {
    let app = app(config, key)?;
    let Some(secret) = &app.secret else {
        return Err(format!(
            "app {} has no secret to sign with: whoever holds its private keys makes its tokens",
            app.id
        ));
    };
    if !app.tokens.algorithms.iter().any(|algorithm| algorithm == "HS256") {
        return Err(format!("app {} does not accept HS256, which this command signs with", app.id));
    }
    for (claim, value) in [("aud", &app.tokens.audience), ("iss", &app.tokens.issuer)] {
        if !value.is_empty() {
            claims.insert(claim.into(), json!(value));
        }
    }
    gateway::mint(secret, &Value::Object(claims)).map_err(|error| error.to_string())
}

/// The app with the public key `key`; without one the only app, else the one called `default`.
fn app<'a>(config: &'a Config, key: Option<&str>) -> Result<&'a AppConfig, String> {
    match (key, config.apps.as_slice()) {
        (None, [only]) => Ok(only),
        (key, apps) => {
            let key = key.unwrap_or("default");
            let known: Vec<_> = apps.iter().map(|app| app.key.as_str()).collect();
            let found = apps.iter().find(|app| app.key == key);
            found.ok_or_else(|| format!("no app has the key {key:?}; there are: {}", known.join(", ")))
        }
    }
}

async fn verify(config: &Config, key: Option<&str>, token: &str) -> ExitCode {
    let refused = |problem: String| {
        terminal::say(&problem);
        ExitCode::from(FAULT)
    };
    let gateway = match Gateway::new(config, tokio::runtime::Handle::current()) {
        Ok(gateway) => gateway,
        Err(error) => return refused(error.to_string()),
    };
    let Some(app) = gateway.app(key) else { return refused("no such app".into()) };
    match app.verify(token).await {
        Ok(verified) => {
            // Whoever closes the pipe has the exit code.
            let _ = terminal::print(&terminal::escape(&describe(&verified)));
            ExitCode::from(DONE)
        }
        Err(error) => refused(format!("refused: {error}")),
    }
}

/// What a good token is worth, in a line.
fn describe(verified: &Verified) -> String {
    match verified {
        Verified::Connection(identity) => {
            let grants: Vec<_> = identity
                .grants
                .iter()
                .map(|grant| {
                    let channels: Vec<_> = grant.channels.iter().map(Pattern::as_str).collect();
                    format!("{}={}", channels.join(" "), names(grant.actions))
                })
                .collect();
            let allows = if grants.is_empty() { "nothing by itself".into() } else { grants.join(" and ") };
            format!("good: connection of {}, {}, allows {allows}", identity.user, until(identity.expires))
        }
        Verified::Subscription { user, channel, grant, .. } => {
            let user = user.as_ref().map_or("an anonymous connection", UserId::as_str);
            format!("good: channel {channel} for {user}, {}, allows {}", until(grant.expires), names(grant.actions))
        }
    }
}

fn names(actions: Actions) -> String {
    let named: Vec<_> = Action::ALL.into_iter().filter(|action| actions.contains(*action)).map(Action::name).collect();
    named.join(",")
}

fn until(expires: Option<u64>) -> String {
    let left = |at: u64| Span(std::time::Duration::from_secs(at.saturating_sub(UnixMillis::now().0 / 1000)));
    expires.map_or_else(|| "without an end".into(), |at| format!("for {} more (until {at})", left(at)))
}
