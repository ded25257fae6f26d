//! Times as Go prints them.

use serde::{Deserialize, Serialize};

/// A point in time in a record: RFC 3339 in UTC with up to nine decimals, zeros at the end left out.
///
/// The text is kept as it was read, so that a peer's way of writing it survives a rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(String);

impl Default for Time {
    /// Go's zero time.
    fn default() -> Self {
        Self("0001-01-01T00:00:00Z".to_owned())
    }
}

impl Time {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        Self::from(jiff::Timestamp::now())
    }

    /// As text, for example `2026-11-21T06:52:14.114090173Z`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a point in time; `None` for a text that is none.
    #[must_use]
    pub fn timestamp(&self) -> Option<jiff::Timestamp> {
        self.0.parse().ok()
    }
}

impl From<jiff::Timestamp> for Time {
    fn from(timestamp: jiff::Timestamp) -> Self {
        // jiff prints the fewest decimals that say it all, as Go's RFC3339Nano does.
        Self(timestamp.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_are_left_out() {
        for text in ["2026-11-21T06:52:14Z", "2026-11-21T06:52:14.1Z", "2026-11-21T06:52:14.114090173Z"] {
            let timestamp: jiff::Timestamp = text.parse().unwrap();
            assert_eq!(Time::from(timestamp).as_str(), text);
        }
        assert_eq!(Time::default().timestamp().unwrap().to_string(), "0001-01-01T00:00:00Z");
    }
}
