//! What stands in a call's query.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use axum::extract::FromRequestParts;
use http::{Uri, request::Parts};
use percent_encoding::percent_decode_str;

use super::{Problem, has_bad_escape};
use crate::domain::{ErrorCode, Refusal};

/// A query, decoded. Names that nobody asks for are ignored, as unknown members are.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// `bad_request`: it cannot be decoded.
    pub fn read(uri: &Uri) -> Result<Self, Refusal> {
        let decoded = |raw: &str| {
            let whole = !has_bad_escape(raw);
            let text = percent_decode_str(&raw.replace('+', " ")).decode_utf8().map(|text| text.into_owned());
            text.ok().filter(|_| whole).ok_or_else(|| bad("a part of the query is not percent-encoded UTF-8".into()))
        };
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        });
        Ok(Self(pairs.collect::<Result<_, Refusal>>()?))
    }

    /// Every value of `name`.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The one value of `name`, if there is one.
    ///
    /// # Errors
    /// `bad_request`: there are several.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(bad(format!("`{name}` is there twice"))),
            (value, None) => Ok(value),
        }
    }

    /// The one value of `name`, parsed.
    ///
    /// # Errors
    /// `bad_request`: there are several, or it cannot be parsed.
    pub fn parsed<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let parse = |text: &str| text.parse().map_err(|error| bad(format!("`{name}`: {error}")));
        self.text(name)?.map(parse).transpose()
    }

    /// The one value of `name`, a whole number in `range`.
    ///
    /// # Errors
    /// `bad_request`: there are several, or it is none.
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let parse = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|number| digits && range.contains(number));
            number.ok_or_else(|| {
                bad(match (range.start(), range.end()) {
                    (_, &u64::MAX) => format!("`{name}` is a whole number"),
                    (least, most) => format!("`{name}` is a whole number from {least} to {most}"),
                })
            })
        };
        self.text(name)?.map(parse).transpose()
    }

    /// The one value of `name`, `true` or `false`; false where it is missing.
    ///
    /// # Errors
    /// `bad_request`: there are several, or it is neither.
    pub fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(bad(format!("`{name}` is `true` or `false`"))),
        }
    }
}

fn bad(message: String) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self::read(&parts.uri)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::read(&format!("/?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn values_are_decoded_and_counted() {
        let query = query("channel=a%2Fb&&channel=c+d&prefix=r%C3%A4&x");
        assert_eq!(query.all("channel").collect::<Vec<_>>(), ["a/b", "c d"]);
        assert_eq!(query.text("prefix").unwrap(), Some("rä"));
        assert_eq!(query.text("x").unwrap(), Some(""));
        assert_eq!(query.text("channel").unwrap_err().message, "`channel` is there twice");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let query = query("limit=1001&after=-1&big=99999999999999999999&plus=%2B1&reverse=yes&user=");
        assert_eq!(query.number("limit", 1..=1000).unwrap_err().message, "`limit` is a whole number from 1 to 1000");
        for name in ["after", "big", "plus", "user"] {
            assert_eq!(query.number(name, 0..=u64::MAX).unwrap_err().message, format!("`{name}` is a whole number"));
        }
        assert_eq!(query.flag("reverse").unwrap_err().message, "`reverse` is `true` or `false`");
        assert_eq!(query.parsed::<crate::domain::UserId>("user").unwrap_err().message, "`user`: not an id");
        for bad in ["a=%FF", "a=%", "%zz=1"] {
            assert!(Query::read(&format!("/?{bad}").parse().unwrap()).is_err(), "{bad}");
        }
    }
}
