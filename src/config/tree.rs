//! A configuration before it is one: values as they were written, and where.
//!
//! serde stops at the first fault and forgets lines; so the file and the environment are read into this tree first,
//! checked as a whole in `validate`, and only what passed is handed on to serde.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::finding::{Finding, Origin};

/// A value and where it was written.
pub(super) struct Node {
    pub value: Value,
    pub origin: Origin,
}

/// A value as TOML knows them.
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// Something that no key takes; its name for the message.
    Other(&'static str),
}

impl Value {
    /// What it is, for a message. Never the value itself: it may be a secret in the wrong place.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }
}

impl From<&Value> for toml::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::Text(text) => Self::String(text.clone()),
            Value::Integer(number) => Self::Integer(*number),
            Value::Bool(flag) => Self::Boolean(*flag),
            Value::List(items) => Self::Array(items.iter().map(|item| Self::from(&item.value)).collect()),
            Value::Table(table) => {
                Self::Table(table.iter().map(|(name, node)| (name.clone(), Self::from(&node.value))).collect())
            }
            Value::Other(what) => Self::String((*what).into()),
        }
    }
}

/// Reads a TOML document.
///
/// # Errors
/// Every fault of its syntax, by line and column. The line itself is not shown: it may hold a secret.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Node>, Vec<Finding>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(convert_table(table.get_ref(), &|at| Origin::Line(line(text, at))));
    }
    let fault = |error: &toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let column = text.get(..at).map_or(1, |before| before.chars().rev().take_while(|c| *c != '\n').count() + 1);
        let problem = format!("not TOML at column {column}: {}", first_line(error.message()));
        Finding { key: String::new(), problem, nearest: None, origin: Some(Origin::Line(line(text, at))) }
    };
    Err(errors.iter().map(fault).collect())
}

/// Reads one TOML value, such as `["a", "b"]` or `{ size = 100 }`; `None` if it is none.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Option<Node> {
    let document = format!("value = {text}");
    let table = DeTable::parse(&document).ok()?;
    let mut table = convert_table(table.get_ref(), &|_| origin.clone());
    if table.len() == 1 { table.remove("value") } else { None }
}

fn convert_table(table: &DeTable<'_>, origin: &impl Fn(usize) -> Origin) -> BTreeMap<String, Node> {
    let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let node = Node { value: convert(value.get_ref(), origin), origin: origin(key.span().start) };
        (key.get_ref().to_string(), node)
    };
    table.iter().map(entry).collect()
}

fn convert(value: &DeValue<'_>, origin: &impl Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number beyond all measure"), Value::Integer),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Node { value: convert(item.get_ref(), origin), origin: origin(item.span().start) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, origin)),
    }
}

/// The line that byte `at` stands on, counted from 1.
fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_line() {
        let tree = parse("listen = 'a'\n[[app]]\nid = 'x'\n[[app]]\n\nid = 7\n").map_err(|_| ()).unwrap();
        let Value::List(apps) = &tree["app"].value else { panic!("a list") };
        let Value::Table(second) = &apps[1].value else { panic!("a table") };
        assert_eq!(second["id"].origin, Origin::Line(6));
    }

    #[test]
    fn every_fault_of_syntax_is_named_and_no_line_is_shown() {
        let faults = parse("secret = \"hunter2\nlevel = = 1\n").err().unwrap();
        assert!(2 <= faults.len(), "{faults:?}");
        assert!(!format!("{faults:?}").contains("hunter2"));
    }

    #[test]
    fn one_value_is_one_value() {
        let origin = Origin::Flag("--x");
        assert!(parse_value("[1, 2]", &origin).is_some());
        for bad in ["", "[::]:8080", "1\nb = 2", "a"] {
            assert!(parse_value(bad, &origin).is_none(), "{bad}");
        }
    }
}
