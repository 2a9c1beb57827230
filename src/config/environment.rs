//! Settings from environment variables: `FANWIRE_` and the key in capitals, with `__` between levels.
//!
//! - `FANWIRE_BROKER__URL` is `broker.url`; `FANWIRE_APP__1__ID` is `app[1].id`, and the number after the last app makes
//!   one more; `FANWIRE_NAMESPACE__ROOM__PRESENCE` is `namespace.room.presence` (or that of a namespace in the file
//!   which is spelt so but for its case); `FANWIRE_NAMESPACE____PRESENCE` is that of the unnamed one.
//! - `FANWIRE_SECRET` is `app[0].secret`.
//! - A list is written with commas, or as in TOML; a table as in TOML.

use std::collections::BTreeMap;

use super::{
    finding::{Finding, Origin, Report},
    keys::{self, Key, Kind, ROOT, Shape},
    nearest::nearest,
    tree::{self, Node, Value},
};

/// What the name of each variable begins with.
pub(super) const PREFIX: &str = "FANWIRE_";
/// The first app's secret.
const SECRET: &str = "FANWIRE_SECRET";
/// Variables of ours that are no settings of the server: those of the terminal clients.
const OTHERS: [&str; 2] = ["FANWIRE_URL", "FANWIRE_TOKEN"];

/// Puts what `env` says over `root`. Unknown variables are warned of: Kubernetes sets some for a service of our name.
pub(super) fn apply(root: &mut BTreeMap<String, Node>, env: &[(String, String)], report: &mut Report) {
    let mut ours: Vec<_> = env
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX) && !OTHERS.contains(&name.as_str()))
        .map(|(name, value)| (path(name), name, value))
        .collect();
    // Tables before what stands in them, and lower numbers first, whatever order the system has them in.
    ours.sort_by_key(|(path, name, _)| (in_order(path), (*name).clone()));
    for (path, name, value) in ours {
        let Some(shape) = resolve(&path) else {
            unknown(name, report);
            continue;
        };
        let origin = Origin::Variable(name.clone());
        if value.contains(char::REPLACEMENT_CHARACTER) {
            report.fault(name.clone(), "is not UTF-8");
            continue;
        }
        if let Err(problem) = insert(root, ROOT, &path, node(shape, value, &origin)) {
            let finding = Finding { key: problem.0, problem: problem.1, nearest: None, origin: Some(origin) };
            report.faults.push(finding);
        }
    }
}

/// The names of all variables; `<N>` stands for a number, `NAME` for a namespace's name.
pub(super) fn names() -> Vec<String> {
    let mut all = Vec::new();
    keys::collect(ROOT, "", &mut all);
    all.iter().map(|(full, _)| name_of(full)).collect()
}

/// The name of the variable for the key that [`keys::collect`] calls `full`.
pub(super) fn name_of(full: &str) -> String {
    let name = full.replace("[]", "__<N>").replace('.', "__");
    format!("{PREFIX}{}", name.to_uppercase())
}

fn path(name: &str) -> Vec<String> {
    match name {
        SECRET => vec!["app".into(), "0".into(), "secret".into()],
        name => name[PREFIX.len()..].split("__").map(str::to_lowercase).collect(),
    }
}

fn in_order(path: &[String]) -> Vec<(usize, String)> {
    path.iter().map(|segment| (segment.parse().unwrap_or_default(), segment.clone())).collect()
}

/// What stands at `path`: `None` for nothing.
enum At {
    Shape(&'static Shape),
    /// One item of a list of groups, or one named group, as a whole.
    Item,
}

fn resolve(path: &[String]) -> Option<At> {
    let (mut keys, mut rest) = (ROOT, path);
    loop {
        let (name, below) = rest.split_first()?;
        let shape = &keys::find(keys, name)?.shape;
        if below.is_empty() {
            return Some(At::Shape(shape));
        }
        keys = shape.keys()?;
        rest = match shape {
            Shape::Groups(_) | Shape::Secrets(_) => {
                below[0].parse::<usize>().ok()?;
                &below[1..]
            }
            Shape::Named(_) => &below[1..],
            _ => below,
        };
        if rest.is_empty() {
            return Some(At::Item);
        }
    }
}

/// `value` as what `at` takes; where it cannot be that, as the text that it is, for the check to refuse by name.
fn node(at: At, value: &str, origin: &Origin) -> Node {
    let text = || Node { value: Value::Text(value.into()), origin: origin.clone() };
    let literal = || tree::parse_value(value, origin);
    match at {
        At::Shape(Shape::One(Kind::Bool)) => match value {
            "true" | "false" => Node { value: Value::Bool(value == "true"), origin: origin.clone() },
            _ => text(),
        },
        At::Shape(Shape::One(Kind::Number)) => {
            value.trim().parse().map_or_else(|_| text(), |n| Node { value: Value::Integer(n), origin: origin.clone() })
        }
        At::Shape(Shape::One(_)) => text(),
        At::Shape(Shape::Many { .. } | Shape::Secrets(_)) => {
            literal().filter(|node| matches!(node.value, Value::List(_))).unwrap_or_else(|| {
                let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
                let item = |item: &str| Node { value: Value::Text(item.into()), origin: origin.clone() };
                Node { value: Value::List(items.map(item).collect()), origin: origin.clone() }
            })
        }
        At::Shape(_) | At::Item => literal().unwrap_or_else(text),
    }
}

/// Puts `node` at `path` below `table`. The error is a key's full name, as far as it came, and what is wrong there.
fn insert(
    table: &mut BTreeMap<String, Node>,
    keys: &'static [Key],
    path: &[String],
    node: Node,
) -> Result<(), (String, String)> {
    let [name, below @ ..] = path else { return Ok(()) };
    let Some(key) = keys::find(keys, name) else { return Ok(()) };
    if below.is_empty() {
        table.insert(name.clone(), node);
        return Ok(());
    }
    let origin = node.origin.clone();
    let empty = |value| Node { value, origin: origin.clone() };
    let table_or_list = match key.shape {
        Shape::Groups(_) | Shape::Secrets(_) => Value::List(Vec::new()),
        _ => Value::Table(BTreeMap::new()),
    };
    let keys = key.shape.keys().unwrap_or_default();
    let within = |(inner, problem): (String, String)| (format!("{name}{inner}"), problem);
    match (&key.shape, &mut table.entry(name.clone()).or_insert_with(|| empty(table_or_list)).value) {
        (Shape::Groups(_) | Shape::Secrets(_), Value::List(items)) => {
            let number: usize = below[0].parse().unwrap_or(usize::MAX);
            if items.len() < number {
                let next = items.len();
                return Err((format!("{name}[{number}]"), format!("the next one is number {next}")));
            }
            if items.len() == number {
                items.push(empty(Value::Table(BTreeMap::new())));
            }
            insert_item(&mut items[number], keys, &below[1..], node)
                .map_err(|(inner, problem)| (format!("{name}[{number}].{inner}"), problem))
        }
        (Shape::Named(_), Value::Table(groups)) => {
            let chosen = groups.keys().find(|known| known.to_lowercase() == below[0]).unwrap_or(&below[0]).clone();
            let group = groups.entry(chosen).or_insert_with(|| empty(Value::Table(BTreeMap::new())));
            insert_item(group, keys, &below[1..], node)
                .map_err(|(inner, problem)| within((format!(".{}.{inner}", below[0]), problem)))
        }
        (_, Value::Table(group)) => {
            insert(group, keys, below, node).map_err(|(inner, problem)| within((format!(".{inner}"), problem)))
        }
        // The file has something else there, which the check will refuse.
        _ => Ok(()),
    }
}

fn insert_item(item: &mut Node, keys: &'static [Key], below: &[String], node: Node) -> Result<(), (String, String)> {
    if below.is_empty() {
        *item = node;
        return Ok(());
    }
    match &mut item.value {
        Value::Table(group) => insert(group, keys, below, node),
        _ => Ok(()),
    }
}

fn unknown(name: &str, report: &mut Report) {
    // Compared without what all of them begin with, which would make each look like any other.
    let names: Vec<_> = names().into_iter().chain([SECRET.into()]).collect();
    let known = names.iter().filter_map(|known| known.strip_prefix(PREFIX));
    let meant = nearest(&name[PREFIX.len()..], known).map(|found| format!("{PREFIX}{found}"));
    report.warn(name, "unknown environment variable, ignored");
    if let Some(warning) = report.warnings.last_mut() {
        warning.nearest = meant;
    }
}
