//! Progress on a terminal; nothing in a pipe.

use std::io::IsTerminal;

use graph_oci::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for that many bytes, a counter where nobody knows how many.
pub(crate) fn bytes(what: &'static str, size: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, target());
    let template = if size.is_some() {
        "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{msg} {bytes} {bytes_per_sec}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}

/// A bar for steps of which one does not know yet how many there are.
pub(crate) fn steps(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), target());
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {pos}/{len}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}

fn target() -> ProgressDrawTarget {
    // Standard output may be a pipe while standard error is a terminal: the bar is for the person, not for the pipe.
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Progress of an image's layers, one after another.
pub(crate) struct Layers {
    bar: ProgressBar,
    what: &'static str,
}

impl Layers {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { bar: bytes(what, Some(0)), what }
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        match event {
            Event::Layer { diff_id, index, count, bytes } => {
                let short: String = diff_id.hex().chars().take(12).collect();
                self.bar.set_length(bytes);
                self.bar.set_position(0);
                self.bar.set_message(format!("{} layer {}/{count} {short}", self.what, index + 1));
            }
            Event::Bytes(done) => self.bar.set_position(done),
            _ => {}
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
