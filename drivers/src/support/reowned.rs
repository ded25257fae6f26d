//! What is said when new owners cost a copy.

use graph_archive::copy::CopyReport;
use graph_core::LayerId;
use graph_sys::reflink::CopyMethod;

/// Warns if files were copied in full only to change their owners.
pub(crate) fn warn_of_full_copy(report: &CopyReport, id: &LayerId) {
    if report.method.is_some_and(|method| method != CopyMethod::Reflink) {
        tracing::warn!(
            layer = %id,
            bytes = report.bytes,
            "copied the files of a layer in full to change their owners: this file system does not share data between \
             files; xfs and btrfs do, and overlay with ID-mapped mounts needs no copies"
        );
    }
}
