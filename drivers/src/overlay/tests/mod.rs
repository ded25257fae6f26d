//! Tests of the whole driver; those that mount run in a mount namespace of their own.
#![allow(clippy::disallowed_methods, reason = "tests look at the files by their paths")]

mod differences;
mod mounts;
mod peers;
mod records;
mod support;
