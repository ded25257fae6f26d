//! What the JSON files say: one struct for each kind of record, with its fields in the file's order.
//!
//! Fields that this version does not know are kept ([`Extra`]) and written behind the known ones. Which fields are left
//! out when empty, the order, and the encoding are those of containers/storage 1.43 to 1.64 (measured).

mod container;
mod fields;
mod image;
mod layer;
mod mount_point;
#[cfg(test)]
mod peer_tests;
mod time;

pub use container::Container;
pub use fields::{Extra, Flags};
pub use image::Image;
pub use layer::Layer;
pub use mount_point::MountPoint;
pub use time::Time;

/// Defines a record: a struct, and its JSON form with exactly these keys in exactly this order.
///
/// A field is left out when it is empty (Go's `omitempty`) unless it is marked `always`. `null` reads as empty.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $key:literal => $field:ident : $type:ty $(, $always:ident)? ; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
            /// Fields that this version does not know, in the order they were found.
            pub extra: $crate::records::Extra,
        }

        const _: () = {
            use std::fmt;
            use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
            use serde::ser::{Serialize, SerializeMap, Serializer};
            use $crate::records::fields::Omit;

            #[allow(non_camel_case_types)]
            enum Key { $( $field, )* Other(String) }

            impl<'de> Deserialize<'de> for Key {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    struct Keys;
                    impl Visitor<'_> for Keys {
                        type Value = Key;
                        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                            f.write_str("a field name")
                        }
                        fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                            Ok(match key {
                                $( $key => Key::$field, )*
                                _ => Key::Other(key.to_owned()),
                            })
                        }
                    }
                    deserializer.deserialize_str(Keys)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    struct Fields;
                    impl<'de> Visitor<'de> for Fields {
                        type Value = $name;
                        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                            f.write_str(concat!("the record of a ", stringify!($name)))
                        }
                        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                            let mut record = $name::default();
                            while let Some(key) = map.next_key::<Key>()? {
                                match key {
                                    $( Key::$field => {
                                        record.$field = map.next_value::<Option<$type>>()?.unwrap_or_default();
                                    } )*
                                    Key::Other(key) => record.extra.push(key, map.next_value()?),
                                }
                            }
                            Ok(record)
                        }
                    }
                    deserializer.deserialize_map(Fields)
                }
            }

            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    let mut map = serializer.serialize_map(None)?;
                    $(
                        if $crate::records::always!($($always)?) || !Omit::omitted(&self.$field) {
                            map.serialize_entry($key, &self.$field)?;
                        }
                    )*
                    self.extra.serialize_into(&mut map)?;
                    map.end()
                }
            }
        };
    };
}

macro_rules! always {
    () => {
        false
    };
    (always) => {
        true
    };
}

pub(crate) use {always, record};
