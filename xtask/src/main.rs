//! Tasks of this repository. `cargo xtask help` lists them; README.md names the two that matter.

use std::path::PathBuf;
use std::process::ExitCode;

mod demo;
mod image;
mod mirror;
mod run;
mod tests;
mod vm;

const HELP: &str = "\
cargo xtask TASK

  demo [IMAGE]      the main job: load a real image, run a container on it, show the changes, export it again.
                    IMAGE is an OCI layout directory, an oci-archive or a docker-archive; without one an image is made
  test [ARGS...]    install what the tests need (Debian, as root), then check and test everything; ARGS go to nextest
  packages          only install what the tests need
  perfdata [DIR]    make the benchmark data (about 3 GB, 6 minutes) in DIR (target/perfdata)
  bench [ARGS...]   measure beside the packaged peers, on that data
  man [DIR]         write the manual pages and shell completions of driverctl into DIR (target/man)
  vm ARGS...        run tests under other kernels in virtual machines; without ARGS, which there are
  fuzz [SECONDS]    run every fuzz target for SECONDS (600)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match task.as_str() {
        "demo" => demo::run(rest.first().map(PathBuf::from)),
        "test" => tests::run(&rest),
        "packages" => tests::install_packages(),
        "perfdata" => tests::perfdata(rest.first().map(String::as_str)),
        "bench" => tests::bench(&rest),
        "man" => tests::man(rest.first().map(String::as_str)),
        "vm" => vm::run(&rest),
        "fuzz" => tests::fuzz(rest.first().map(String::as_str)),
        "" | "help" | "-h" | "--help" => {
            say(HELP);
            Ok(())
        }
        other => Err(anyhow::anyhow!("no task {other:?}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("xtask {task}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for whoever ran the task.
#[expect(clippy::print_stdout, reason = "a task runner talks to its terminal")]
fn say(text: &str) {
    println!("{text}");
}

/// A line about what went wrong.
#[expect(clippy::print_stderr, reason = "a task runner talks to its terminal")]
fn complain(text: &str) {
    eprintln!("{text}");
}
