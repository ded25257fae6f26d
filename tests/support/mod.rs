//! What tests need of the system: file systems of their own, namespaces, and a program's output.

pub(crate) mod filesystem;
pub(crate) mod program;
pub(crate) mod user_namespace;
