//! What labels must be like: `app=shop,tier!=scratch,backed-up,!old`, all of it at once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Labels, is_label};

/// A label selector that parses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl Requirement {
    /// A label that is absent is not equal to anything.
    fn fits(&self, labels: &Labels) -> bool {
        match self {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        }
    }
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no label selector; write such as `app=shop,tier!=scratch,backed-up,!old`")]
pub struct NotASelector(String);

impl Selector {
    /// Whether labels are as they must be.
    pub fn fits(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.fits(labels))
    }
}

impl FromStr for Selector {
    type Err = NotASelector;

    fn from_str(text: &str) -> Result<Self, NotASelector> {
        let requirement = |part: &str| {
            let word = |text: &str| Some(text.trim().to_owned()).filter(|word| is_label(word));
            if let Some((key, value)) = part.split_once("!=") {
                Some(Requirement::IsNot(word(key)?, word(value)?))
            } else if let Some((key, value)) = part.split_once('=') {
                Some(Requirement::Is(word(key)?, word(value)?))
            } else if let Some(key) = part.trim().strip_prefix('!') {
                Some(Requirement::HasNot(word(key)?))
            } else {
                Some(Requirement::Has(word(part)?))
            }
        };
        let requirements = text.split(',').map(requirement).collect::<Option<_>>();
        requirements.map(Selector).ok_or_else(|| NotASelector(text.to_owned()))
    }
}

impl TryFrom<String> for Selector {
    type Error = NotASelector;

    fn try_from(text: String) -> Result<Self, NotASelector> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, requirement) in self.0.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { "," })?;
            match requirement {
                Requirement::Is(key, value) => write!(f, "{key}={value}")?,
                Requirement::IsNot(key, value) => write!(f, "{key}!={value}")?,
                Requirement::Has(key) => f.write_str(key)?,
                Requirement::HasNot(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_requirement_counts() {
        let shop_db = labels(&[("app", "shop"), ("tier", "db")]);
        for (selector, fits) in [
            ("app=shop", true),
            ("app=other", false),
            ("app=shop,tier=db", true),
            ("app=shop,tier=web", false),
            ("tier!=web", true),
            ("tier!=db", false),
            ("zone!=a", true),
            ("zone", false),
            ("app", true),
            ("!zone", true),
            ("!app", false),
            ("app = shop , !zone", true),
        ] {
            assert_eq!(selector.parse::<Selector>().unwrap().fits(&shop_db), fits, "{selector}");
        }
    }

    #[test]
    fn it_reads_as_it_was_written() {
        for text in ["app=shop", "app=shop,tier!=db,backed-up,!old"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_selects_nothing_on_purpose_is_refused_in_a_sentence() {
        for wrong in ["", ",", "a,,b", "=x", "a=", "a=b c", "!", "a==b", "a=b!=c"] {
            let error = wrong.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("is no label selector"), "{wrong}: {error}");
        }
    }
}
