//! What more than one driver needs.

pub(crate) mod context;
pub(crate) mod exchange;
pub(crate) mod reowned;
pub(crate) mod update;
pub(crate) mod usage;
