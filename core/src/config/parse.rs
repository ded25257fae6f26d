//! One storage.conf file: text to settings, each with its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{IGNORED_TABLE, Kind, TABLES, kind_of};
use crate::error::{Error, Result};
use crate::options::parse_bool;

/// A value, as [`Kind`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Number(u32),
    List { items: Vec<String>, append: Option<bool> },
    Table(BTreeMap<String, String>),
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Built in.
    Default,
    /// A file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(&'static str),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
        }
    }
}

/// Something that an operator should hear of, though it is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub origin: Origin,
    /// What.
    pub text: String,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) settings: Vec<(String, Value, Origin)>,
    pub(super) notices: Vec<Notice>,
}

/// Reads the text of a file. `drivers` are the names whose tables `[storage.options.<name>]` may hold any key.
///
/// # Errors
/// [`Error::Config`] with file and line for text that is not TOML and for a value of the wrong type.
pub(super) fn parse(path: &Path, text: &str, drivers: &[&str]) -> Result<Parsed> {
    let mut file = FileParser { path, text, drivers, parsed: Parsed::default() };
    let table = DeTable::parse(text)
        .map_err(|error| file.error(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
    file.table("", table.get_ref())?;
    // Tables come sorted by name; people read files from the top.
    file.parsed.notices.sort_by_key(|notice| match notice.origin {
        Origin::File { line, .. } => line,
        _ => 0,
    });
    Ok(file.parsed)
}

struct FileParser<'f> {
    path: &'f Path,
    text: &'f str,
    drivers: &'f [&'f str],
    parsed: Parsed,
}

impl FileParser<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) -> Result<()> {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let start = name.span().start;
            if key == IGNORED_TABLE {
                continue;
            }
            if let Some(kind) = kind_of(&key) {
                let value = self.value(&key, kind, value.get_ref(), value.span().start)?;
                self.parsed.settings.push((key, value, self.origin(start)));
                continue;
            }
            let driver = key.strip_prefix("storage.options.").filter(|driver| self.drivers.contains(driver));
            match value.get_ref() {
                DeValue::Table(inner) if TABLES.contains(&key.as_str()) => self.table(&key, inner)?,
                DeValue::Table(inner) if driver.is_some() => self.driver_table(&key, inner)?,
                _ if TABLES.contains(&key.as_str()) => {
                    return Err(self.error(value.span().start, format!("{key} must be a table")));
                }
                _ => {
                    let origin = self.origin(start);
                    self.parsed.notices.push(Notice { origin, text: format!("unknown key {key}") });
                }
            }
        }
        Ok(())
    }

    /// The table of a driver that is not one of containers/storage's: its keys are the driver's business.
    fn driver_table(&mut self, prefix: &str, table: &DeTable<'_>) -> Result<()> {
        for (name, value) in table {
            let key = format!("{prefix}.{}", name.get_ref());
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(value) => value.to_string(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                _ => {
                    let problem = format!("{key} must be a string, a boolean or a whole number");
                    return Err(self.error(value.span().start, problem));
                }
            };
            let origin = self.origin(name.span().start);
            self.parsed.settings.push((key, Value::Text(text), origin));
        }
        Ok(())
    }

    fn value(&self, key: &str, kind: Kind, value: &DeValue<'_>, start: usize) -> Result<Value> {
        let wrong = |expected: &str| {
            Err(self.error(start, format!("{key} must be {expected}, not {}", article(value.type_str()))))
        };
        let bool_of = |value: &DeValue<'_>| match value {
            DeValue::Boolean(value) => Some(*value),
            DeValue::String(text) => parse_bool(text),
            _ => None,
        };
        match (kind, value) {
            (Kind::Text, DeValue::String(text)) => Ok(Value::Text(text.to_string())),
            (Kind::Text, _) => wrong("a string"),
            // An empty string counts as unset, as it does for every other text.
            (Kind::BoolText, DeValue::String(text)) if text.is_empty() => Ok(Value::Text(String::new())),
            (Kind::BoolText, DeValue::String(text)) if bool_of(value).is_some() => Ok(Value::Text(text.to_string())),
            (Kind::BoolText, DeValue::Boolean(value)) => Ok(Value::Text(value.to_string())),
            (Kind::BoolText | Kind::Bool, DeValue::String(text)) if bool_of(value).is_none() => {
                Err(self.error(start, format!("{key} must be \"true\" or \"false\", not {text:?}")))
            }
            (Kind::Bool | Kind::BoolText, _) => match bool_of(value) {
                Some(value) => Ok(Value::Bool(value)),
                None => wrong("a boolean"),
            },
            (Kind::Number, _) => match number(value) {
                Some(number) => Ok(Value::Number(number)),
                None => wrong("a whole number from 0 to 4294967295"),
            },
            (Kind::Mask, DeValue::String(text)) => Ok(Value::Text(text.to_string())),
            (Kind::Mask, _) => match number(value).filter(|mask| *mask <= 0o7777) {
                Some(mask) => Ok(Value::Text(format!("{mask:o}"))),
                None => wrong("permissions up to 0o7777, or a string"),
            },
            (Kind::List, DeValue::Array(array)) => self.list(key, array),
            (Kind::List, _) => wrong("an array of strings"),
            (Kind::Table, DeValue::Table(table)) => self.string_table(key, table),
            (Kind::Table, _) => wrong("a table"),
        }
    }

    /// Strings, and among them perhaps `{append=true}`.
    fn list(&self, key: &str, array: &toml::de::DeArray<'_>) -> Result<Value> {
        let (mut items, mut append) = (Vec::new(), None);
        for item in array {
            let start = item.span().start;
            match item.get_ref() {
                DeValue::String(text) => items.push(text.to_string()),
                DeValue::Table(attributes) => {
                    for (name, value) in attributes {
                        let (name, value) = (name.get_ref().as_ref(), value.get_ref().as_bool());
                        let ("append", Some(value)) = (name, value) else {
                            let problem = format!("in {key}, a table may only be {{append=true}} or {{append=false}}");
                            return Err(self.error(start, problem));
                        };
                        append = Some(value);
                    }
                }
                other => {
                    let problem = format!("{key} must be an array of strings; this is {}", article(other.type_str()));
                    return Err(self.error(start, problem));
                }
            }
        }
        Ok(Value::List { items, append })
    }

    fn string_table(&self, key: &str, table: &DeTable<'_>) -> Result<Value> {
        let mut strings = BTreeMap::new();
        for (name, value) in table {
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(value) => value.to_string(),
                other => {
                    let problem =
                        format!("{key}.{} must be a string, not {}", name.get_ref(), article(other.type_str()));
                    return Err(self.error(value.span().start, problem));
                }
            };
            strings.insert(name.get_ref().to_string(), text);
        }
        Ok(Value::Table(strings))
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.to_path_buf(), line: self.line(offset) }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1)
    }

    fn error(&self, offset: usize, problem: String) -> Error {
        Error::Config { place: format!("{}:{}", self.path.display(), self.line(offset)), problem }
    }
}

fn number(value: &DeValue<'_>) -> Option<u32> {
    let number = value.as_integer()?;
    u32::from_str_radix(number.as_str(), number.radix()).ok()
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
