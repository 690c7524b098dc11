//! What an option of a configuration is, and what one says about an instance.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl Scalar {
    /// What it is, for messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
        }
    }

    /// The text without quotes.
    #[must_use]
    pub fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Flag(_) | Self::Number(_) => self.to_string(),
        }
    }
}

/// As TOML writes it.
impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
        }
    }
}

/// One thing that is said about an instance, or about one of its bridges: that an option has a value, or that a list has
/// an element.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Statement {
    /// The bridge that it is about; none for the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The option.
    pub key: String,
    /// Its value, or an element of it.
    pub value: Scalar,
}

/// How an option is read from what it belongs to, and written there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access<T> {
    /// One value, which is never absent.
    One {
        /// The value.
        get: fn(&T, &str) -> Scalar,
        /// Takes a value, or says why it makes no sense.
        set: fn(&mut T, &str, &Scalar) -> Result<(), String>,
    },
    /// A list of texts.
    Many {
        /// The elements.
        get: fn(&T) -> Vec<String>,
        /// Takes all elements, or says why one makes no sense.
        set: fn(&mut T, &[String]) -> Result<(), String>,
    },
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<T> {
    /// Its name, as on the command line; a dot stands between a table and its key.
    pub(crate) name: &'static str,
    /// Sentences for the sample, a line each.
    pub(crate) about: &'static str,
    /// A value for the sample where the default says nothing, as TOML.
    pub(crate) example: &'static str,
    /// It cannot change while the instance runs.
    pub(crate) fixed: bool,
    /// How it is read and written.
    pub(crate) access: Access<T>,
}

/// What has options.
pub(crate) trait Scope: Sized + 'static {
    /// Its options, in the order of the sample.
    const KEYS: &'static [Key<Self>];

    /// One that has every default.
    fn blank() -> Self;

    /// The option of a name.
    fn find(name: &str) -> Option<&'static Key<Self>> {
        Self::KEYS.iter().find(|key| key.name == name)
    }
}

impl<T: Scope> Key<T> {
    /// What it says at the moment: its value, or its elements.
    pub(crate) fn current(&self, scope: &T) -> Vec<Scalar> {
        match self.access {
            Access::One { get, .. } => vec![get(scope, self.name)],
            Access::Many { get, .. } => get(scope).into_iter().map(Scalar::Text).collect(),
        }
    }

    /// What it says when nobody has said anything.
    pub(crate) fn default(&self) -> Vec<Scalar> {
        self.current(&T::blank())
    }

    /// True for a list.
    pub(crate) const fn is_list(&self) -> bool {
        matches!(self.access, Access::Many { .. })
    }

    /// The form of a value, or why it makes no sense.
    pub(crate) fn read(&self, value: &Scalar) -> Result<Scalar, String> {
        let mut scope = T::blank();
        self.put(&mut scope, value)?;
        self.current(&scope).pop().ok_or_else(|| format!("{value} says nothing"))
    }

    /// Sets the value, or adds the element to the list.
    pub(crate) fn put(&self, scope: &mut T, value: &Scalar) -> Result<(), String> {
        match self.access {
            Access::One { set, .. } => set(scope, self.name, value),
            Access::Many { get, set } => {
                let element = text(value)?.to_owned();
                let mut elements = get(scope);
                if !elements.contains(&element) {
                    elements.push(element);
                }
                set(scope, &elements)
            }
        }
    }

    /// Sets the default, or takes the element from the list.
    pub(crate) fn take_back(&self, scope: &mut T, value: &Scalar) -> Result<(), String> {
        match self.access {
            Access::One { set, .. } => match self.default().first() {
                Some(default) => set(scope, self.name, default),
                None => Ok(()),
            },
            Access::Many { get, set } => {
                let mut elements = get(scope);
                elements.retain(|element| *element != value.plain());
                set(scope, &elements)
            }
        }
    }

    /// Makes it say in one scope what it says in another.
    pub(crate) fn copy(&self, from: &T, to: &mut T) -> Result<(), String> {
        match self.access {
            Access::One { get, set } => set(to, self.name, &get(from, self.name)),
            Access::Many { get, set } => set(to, &get(from)),
        }
    }
}

/// The text that a value is.
pub(crate) fn text(value: &Scalar) -> Result<&str, String> {
    match value {
        Scalar::Text(text) => Ok(text),
        Scalar::Flag(_) | Scalar::Number(_) => {
            Err(format!("{value} is {}, and text in quotes is needed", value.kind()))
        }
    }
}

/// The number that a value is, in its bounds.
pub(crate) fn number(value: &Scalar, least: u64, most: u64) -> Result<u64, String> {
    match value {
        Scalar::Number(number) if (least..=most).contains(number) => Ok(*number),
        Scalar::Number(number) => Err(format!("{number} lies outside {least} to {most}")),
        Scalar::Flag(_) | Scalar::Text(_) => {
            Err(format!("{value} is {}, and a number is needed", value.kind()))
        }
    }
}

/// The flag that a value is.
pub(crate) fn flag(value: &Scalar) -> Result<bool, String> {
    match value {
        Scalar::Flag(flag) => Ok(*flag),
        Scalar::Number(_) | Scalar::Text(_) => {
            Err(format!("{value} is {}, and true or false is needed", value.kind()))
        }
    }
}
