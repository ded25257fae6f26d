//! `driverctl`: layers, images and containers from the command line.

mod cli;
mod cmd;
mod id_map;
mod namespace;
mod output;
mod progress;
mod settings;
mod table;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches};

use cli::Cli;
use cli::syntax::{self, Words};

use cmd::Outcome;

/// Under this name the command is its verb `overlay-mount`.
const MOUNT_PROGRAM: &str = "driverctl-overlay-mount";

fn main() -> ExitCode {
    let mut line = std::env::args_os();
    let program = line.next().unwrap_or_default();
    // Engines have no place for a verb where they name their mount program.
    let verb = (Path::new(&program).file_name() == Some(OsStr::new(MOUNT_PROGRAM))).then(|| "overlay-mount".into());
    let line: Vec<OsString> = verb.into_iter().chain(line).collect();
    let (words, before) = match syntax::read(&Cli::command(), &line) {
        Words::Verb { words, before } => (words, before),
        wrong => return refuse(&program.to_string_lossy(), wrong),
    };
    let words = std::iter::once(program).chain(words);
    let parsed = Cli::command().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // A value that is none of those it may be.
            output::complain(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "));
            return ExitCode::from(syntax::BAD_FLAG);
        }
    };
    if namespace::is_ordinary_user() && cli.global.unshare.unwrap_or_else(|| cli.verb.wants_user_namespace()) {
        // As long as there is one thread.
        let refused = namespace::start_again();
        if refused.half_way || cli.global.unshare.is_some() || cli.verb.is_unshare() {
            output::complain(&cmd::chain(refused.error));
            return ExitCode::FAILURE;
        }
        // A user without ids of its own does what can be done without, and is told what cannot.
    }
    // Scripts take both streams together and want nothing but the answer.
    let level = match (cli.global.debug, std::io::stderr().is_terminal()) {
        (true, _) => tracing::Level::DEBUG,
        (false, true) => tracing::Level::WARN,
        (false, false) => tracing::Level::ERROR,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false).init();
    match run(&cli, &before) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            // Whoever read our output has gone; there is nobody to tell.
            let gone = error.chain().any(|cause| {
                cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if !gone {
                output::complain(&cmd::chain(error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong with the words, as the peers say it.
fn refuse(program: &str, words: Words) -> ExitCode {
    // Where nobody reads the help, nobody misses it.
    let say = |text: &str| drop(output::line(text.trim_end()));
    let usage = |verb: Option<&str>| {
        let mut command = Cli::command();
        command.build();
        let command = verb.and_then(|verb| command.find_subcommand(verb)).unwrap_or(&command);
        say(&command.clone().render_help().to_string());
    };
    let program = output::safe(program);
    match words {
        Words::Verb { .. } => ExitCode::FAILURE,
        Words::Version => {
            say(&Cli::command().render_version());
            ExitCode::SUCCESS
        }
        Words::Help { verb, status } => {
            usage(verb.as_deref());
            ExitCode::from(status)
        }
        Words::Nothing => {
            usage(None);
            ExitCode::FAILURE
        }
        Words::Unknown(word) => {
            say(&format!("{}: unrecognized command.", output::safe(&word.to_string_lossy())));
            ExitCode::FAILURE
        }
        Words::BadCount { verb, text } => {
            say(&text);
            usage(Some(&verb));
            ExitCode::FAILURE
        }
        Words::BadFlag { verb: Some(verb), text } => {
            output::complain(&text);
            output::complain(&format!("See '{program} {} --help'.", output::safe(&verb.to_string_lossy())));
            ExitCode::from(syntax::BAD_FLAG)
        }
        Words::BadFlag { verb: None, text } => {
            output::complain(&text);
            output::complain(&format!("See '{program} --help'."));
            say(&format!("{text} while parsing arguments (1)"));
            usage(None);
            ExitCode::FAILURE
        }
    }
}

/// Does what the words say; `before` are the global flags that stood before the verb.
fn run(cli: &Cli, before: &[String]) -> Result<Outcome> {
    // What needs no store works where there is none.
    if let Some(outcome) = cli.verb.run_without_store() {
        return outcome;
    }
    let opened = match settings::open(&cli.global, before, cli.verb.driver(), cli.verb.only_looks()) {
        Ok(opened) => opened,
        Err(error) => {
            if let Some(outcome) = cli.verb.run_unopened(&error) {
                return outcome;
            }
            output::line(&format!("error initializing: {}", cmd::chain(error)))?;
            return Ok(Outcome::Failed);
        }
    };
    if cli.global.debug || std::io::stderr().is_terminal() {
        for warning in opened.store.warnings() {
            output::complain(&format!("warning: {}", output::safe(warning)));
        }
    }
    cli.verb.run(&opened)
}
