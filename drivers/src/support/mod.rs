//! What more than one driver needs.

pub(crate) mod context;
pub(crate) mod owners;
pub(crate) mod usage;
