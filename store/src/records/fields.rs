//! Field types that several records share.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Whether Go's `omitempty` leaves the value out.
pub(crate) trait Omit {
    fn omitted(&self) -> bool;
}

impl Omit for String {
    fn omitted(&self) -> bool {
        self.is_empty()
    }
}
impl<T> Omit for Vec<T> {
    fn omitted(&self) -> bool {
        self.is_empty()
    }
}
impl<K, V> Omit for BTreeMap<K, V> {
    fn omitted(&self) -> bool {
        self.is_empty()
    }
}
impl Omit for i64 {
    fn omitted(&self) -> bool {
        *self == 0
    }
}
impl Omit for Flags {
    fn omitted(&self) -> bool {
        self.0.is_empty()
    }
}
impl Omit for crate::records::Time {
    fn omitted(&self) -> bool {
        false
    }
}

/// Fields of a record that this version does not know, with their values' text as it was read.
#[derive(Clone, Debug, Default)]
pub struct Extra(Vec<(String, Box<RawValue>)>);

impl Extra {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and JSON texts, in the order they were found.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.get()))
    }

    pub(crate) fn push(&mut self, key: String, value: Box<RawValue>) {
        self.0.push((key, value));
    }

    pub(crate) fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))
    }
}

impl PartialEq for Extra {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// A record's `flags`: an open set of names with values of any JSON type, kept as the text they were read from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(BTreeMap<String, Box<RawValue>>);

impl Flags {
    /// Names and JSON texts, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.get()))
    }

    /// Whether the flag is there and `true`.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.get() == "true")
    }

    /// The flag's text, if it is there and a string.
    #[must_use]
    pub fn string(&self, name: &str) -> Option<String> {
        self.0.get(name).and_then(|value| serde_json::from_str(value.get()).ok())
    }

    /// The flag's texts, if it is there and a list of strings.
    #[must_use]
    pub fn strings(&self, name: &str) -> Option<Vec<String>> {
        self.0.get(name).and_then(|value| serde_json::from_str(value.get()).ok())
    }

    /// Sets a flag to anything that JSON can hold; a value that it cannot hold is ignored.
    pub fn set<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        let text = crate::json::to_vec(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(raw) = text.and_then(|text| RawValue::from_string(text).ok()) {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Takes a flag away; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }
}

impl PartialEq for Flags {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
