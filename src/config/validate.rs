//! Holds a tree of values against the table of keys: every unknown key and every wrong value at once.
//!
//! What is wrong is reported and taken out of the tree, so that what stays can become a `Config` and be checked further.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    ByteSize, Rate, Span,
    finding::Report,
    keys::{self, Key, Kind, Shape, join},
    nearest::nearest,
    tree::{Node, Value},
};

/// Checks the table at `path` and takes out of it what is wrong. False: a required key is missing.
pub(super) fn validate_table(
    table: &mut BTreeMap<String, Node>,
    keys: &'static [Key],
    path: &str,
    report: &mut Report,
) -> bool {
    table.retain(|name, node| {
        let full = join(path, name);
        report.origins.insert(full.clone(), node.origin.clone());
        match keys::find(keys, name) {
            Some(key) => validate(node, &key.shape, &full, report),
            None => {
                unknown(path, keys, name, full, report);
                false
            }
        }
    });
    let mut complete = true;
    for key in keys.iter().filter(|key| key.required && !table.contains_key(key.name)) {
        let full = join(path, key.name);
        if report.sound(&[full.as_str()]) {
            report.fault(full, "is missing");
        }
        complete = false;
    }
    complete
}

fn unknown(path: &str, keys: &'static [Key], name: &str, full: String, report: &mut Report) {
    let nearest = keys::nearest_key(path, keys, name);
    let problem = match nearest {
        Some(_) => "unknown key".into(),
        None => {
            let known: Vec<_> = keys.iter().map(|key| key.name).collect();
            format!("unknown key; known here: {}", known.join(", "))
        }
    };
    report.unknown(full, problem, nearest);
}

/// Whether `node` may stay.
fn validate(node: &mut Node, shape: &Shape, path: &str, report: &mut Report) -> bool {
    match (shape, &mut node.value) {
        (Shape::One(kind), value) => validate_one(value, *kind, path, report),
        (Shape::Many { of, bare: true }, value @ Value::Text(_)) => validate_one(value, *of, path, report),
        (Shape::Many { of, .. }, Value::List(items)) => {
            retain(items, path, report, |item, path, report| validate_one(&item.value, *of, path, report));
            true
        }
        (Shape::Group(keys) | Shape::Optional(keys), Value::Table(table)) => validate_table(table, keys, path, report),
        (Shape::Groups(keys), Value::List(items)) => {
            retain(items, path, report, |item, path, report| validate_group(item, keys, path, report));
            true
        }
        (Shape::Secrets(keys), Value::List(items)) => {
            retain(items, path, report, |item, path, report| match &item.value {
                Value::Table(_) => validate_group(item, keys, path, report),
                value => validate_one(value, Kind::Secret, path, report),
            });
            true
        }
        (Shape::Named(keys), Value::Table(table)) => {
            table.retain(|name, node| {
                let path = join(path, name);
                report.origins.insert(path.clone(), node.origin.clone());
                validate_group(node, keys, &path, report)
            });
            true
        }
        (shape, value) => {
            let expected = match shape {
                Shape::Many { .. } | Shape::Secrets(_) => "a list in brackets".into(),
                Shape::Groups(_) => format!("a list of tables, each headed [[{}]]", path.replace("[0]", "")),
                _ => format!("a table, headed [{path}]"),
            };
            report.fault(path, format!("takes {expected}, not {}", value.what()));
            false
        }
    }
}

/// Keeps the items that `keep` lets stay, each with its number in the path as it was written.
fn retain(
    items: &mut Vec<Node>,
    path: &str,
    report: &mut Report,
    mut keep: impl FnMut(&mut Node, &str, &mut Report) -> bool,
) {
    let mut number = 0;
    items.retain_mut(|item| {
        let path = format!("{path}[{number}]");
        number += 1;
        report.origins.insert(path.clone(), item.origin.clone());
        keep(item, &path, report)
    });
}

fn validate_group(node: &mut Node, keys: &'static [Key], path: &str, report: &mut Report) -> bool {
    match &mut node.value {
        Value::Table(table) => validate_table(table, keys, path, report),
        value => {
            report.fault(path, format!("takes a table, not {}", value.what()));
            false
        }
    }
}

fn validate_one(value: &Value, kind: Kind, path: &str, report: &mut Report) -> bool {
    let (fits, shown) = match (kind, value) {
        (Kind::Bool, Value::Bool(_)) | (Kind::Text | Kind::Secret | Kind::File, Value::Text(_)) => (true, None),
        (Kind::Number, Value::Integer(number)) => (usize::try_from(*number).is_ok(), Some(number.to_string())),
        (Kind::Bool | Kind::Number | Kind::Secret, _) => (false, None),
        (_, Value::Text(text)) => (is_a(text, kind), Some(format!("{:?}", shorten(text)))),
        (_, Value::Integer(number)) => (false, Some(number.to_string())),
        _ => (false, None),
    };
    if fits {
        return true;
    }
    let shown = shown.unwrap_or_else(|| value.what().into());
    let problem = format!("takes {}, not {shown}", kind.expected());
    let meant = match (kind, value) {
        (Kind::Choice(choices), Value::Text(text)) => nearest(text, choices.iter().copied()).map(str::to_owned),
        _ => None,
    };
    report.unknown(path.into(), problem, meant);
    false
}

fn is_a(text: &str, kind: Kind) -> bool {
    match kind {
        Kind::Address => text.parse::<SocketAddr>().is_ok(),
        Kind::AddressOrNone => text.is_empty() || text.parse::<SocketAddr>().is_ok(),
        Kind::Network => text.parse::<ipnet::IpNet>().is_ok(),
        Kind::Duration => text.parse::<Span>().is_ok(),
        Kind::Size => text.parse::<ByteSize>().is_ok(),
        Kind::Rate => text.parse::<Rate>().is_ok(),
        Kind::Choice(choices) => choices.contains(&text),
        Kind::Text | Kind::Secret | Kind::File => true,
        Kind::Bool | Kind::Number => false,
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
