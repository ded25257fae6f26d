//! One module for each kind of verb.

pub(crate) mod check;
pub(crate) mod containers;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod data;
pub(crate) mod diffs;
pub(crate) mod driver_layers;
pub(crate) mod du;
pub(crate) mod images;
pub(crate) mod layers;
pub(crate) mod mounts;
pub(crate) mod objects;
pub(crate) mod ours;
pub(crate) mod parent_owners;
pub(crate) mod repair;
pub(crate) mod skopeo;
pub(crate) mod stores;
pub(crate) mod surroundings;
pub(crate) mod transfer;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result};
use graph_core::ErrorKind;

use crate::output;

/// Whether all objects of a command were dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All.
    Done,
    /// Some failed; what and why has been printed.
    Failed,
}

/// What a user without privileges does about a refusal of the system.
pub(crate) const NAMESPACE_HINT: &str = "an ordinary user needs a user namespace for this: run it below `podman unshare`, \
     or below `unshare --user --map-root-user --map-auto --mount`";

/// Whether the system refused something to a process without privileges, which it has in a user namespace.
fn wants_namespace(error: &anyhow::Error) -> bool {
    let refused = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        // What a driver found out by trying it has no system error below it any more.
        let store = match cause.downcast_ref::<graph_store::Error>() {
            Some(graph_store::Error::Driver(driver)) => Some(driver),
            _ => None,
        };
        let driver = cause.downcast_ref::<graph_core::Error>().or(store).map(graph_core::Error::kind);
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
            || matches!(driver, Some(ErrorKind::NotSupported | ErrorKind::Prerequisites))
    });
    refused && !graph_sys::userns::has_capabilities(graph_sys::thread::CapabilitySet::SYS_ADMIN)
}

/// Whether that is all there is to say: what was named is no layer.
fn is_unknown_layer(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(graph_store::Error::LayerNotKnown { .. })) && error.chain().count() == 1
}

/// The whole chain of causes on one line, and for ordinary users what to do when the system refused something.
pub(crate) fn chain(error: impl Into<anyhow::Error>) -> String {
    let error = error.into();
    // Scripts know these three words. A person sees which layer as well.
    if is_unknown_layer(&error) && !std::io::stderr().is_terminal() {
        return "layer not known".to_owned();
    }
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        // Transparent wrappers say what their cause says.
        if part == last {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
        last = part;
    }
    if wants_namespace(&error) {
        text.push_str("; ");
        text.push_str(NAMESPACE_HINT);
    }
    output::safe(&text)
}

/// Does something for each object; errors are printed as `<object>: <error>`, or as JSON `{"<object>": "<error>"}`.
pub(crate) fn each<E: Into<anyhow::Error>>(
    objects: &[String],
    json: bool,
    mut action: impl FnMut(&str) -> Result<(), E>,
) -> Result<Outcome> {
    let mut answers: BTreeMap<&str, String> = BTreeMap::new();
    for object in objects {
        let answer = action(object).err().map(chain).unwrap_or_default();
        if !answer.is_empty() && !json {
            output::complain(&format!("{}: {answer}", output::safe(object)));
        }
        answers.insert(object, answer);
    }
    if json {
        output::json(&answers)?;
    }
    Ok(if answers.values().all(String::is_empty) { Outcome::Done } else { Outcome::Failed })
}

/// An id or a name, where the empty word means none.
pub(crate) fn optional(word: Option<&str>) -> Option<String> {
    word.filter(|word| !word.is_empty()).map(str::to_owned)
}

/// An id, then its names.
pub(crate) fn id_and_names(id: &str, names: &[String]) -> Result<()> {
    output::line(&output::safe(id))?;
    for name in names {
        output::line(&format!("\t{}", output::safe(name)))?;
    }
    Ok(())
}

/// The free text of `--metadata` and `--metadata-file`.
pub(crate) fn metadata(words: &crate::cli::Metadata) -> Result<String> {
    // The file counts where both are given, as the peers have it.
    match (&words.metadata, &words.metadata_file) {
        (_, Some(path)) => read(path),
        (Some(text), None) => Ok(text.clone()),
        (None, None) => Ok(String::new()),
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}
