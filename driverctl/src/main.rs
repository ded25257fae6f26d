//! `driverctl`: layers, images and containers from the command line.

mod cli;
mod cmd;
mod id_map;
mod output;
mod progress;
mod settings;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use cli::{Cli, Verb};
use settings::Opened;

use cmd::{Outcome, containers, diffs, images, layers, mounts, stores, transfer};

/// Exit status of a flag that is wrong behind the verb, as the peer has it.
const BAD_FLAG: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let level = if cli.global.debug == Some(true) { tracing::Level::DEBUG } else { tracing::Level::ERROR };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false).init();
    match run(cli) {
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

/// Says what is wrong with the words, in the peer's words where it has some.
fn refuse(error: &clap::Error) -> ExitCode {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = Cli::command();
    let known = |word: &&String| command.find_subcommand(word.as_str()).is_some();
    let verb = words.iter().find(known);
    let verb_at = words.iter().position(|word| known(&word)).unwrap_or(words.len());
    let stands_before_verb =
        |flag: &str| words.iter().position(|word| word.starts_with(flag)).is_some_and(|at| at < verb_at);
    let mut early = false;
    let text = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            drop(output::line(error.to_string().trim_end()));
            return ExitCode::SUCCESS;
        }
        ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            drop(output::line(&format!("{}: unrecognized command.", output::safe(&word))));
            return ExitCode::FAILURE;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            drop(output::line(Cli::command().render_help().to_string().trim_end()));
            return ExitCode::FAILURE;
        }
        ErrorKind::UnknownArgument => {
            let flag = context(ContextKind::InvalidArg).unwrap_or_default();
            if !flag.starts_with('-') {
                let verb = verb.map_or("driverctl", String::as_str);
                drop(output::line(&format!("{verb}: too many arguments ([{}]).", output::safe(&flag))));
                return ExitCode::FAILURE;
            }
            early = stands_before_verb(&flag);
            format!("flag provided but not defined: {}", output::safe(&flag))
        }
        ErrorKind::MissingRequiredArgument => {
            drop(output::line(&format!("{}: more arguments required.", verb.map_or("driverctl", String::as_str))));
            return ExitCode::FAILURE;
        }
        ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_none_or(|value| value.is_empty()) => {
            let flag = context(ContextKind::InvalidArg).unwrap_or_default();
            format!("flag needs an argument: {}", flag.split(' ').next().unwrap_or_default())
        }
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    };
    output::complain(&text);
    match verb {
        Some(verb) if !early => {
            output::complain(&format!("See 'driverctl {verb} --help'."));
            ExitCode::from(BAD_FLAG)
        }
        _ => ExitCode::FAILURE,
    }
}

fn run(cli: Cli) -> Result<Outcome> {
    // What needs no store works where there is none.
    if let Verb::Version { json } = &cli.verb {
        return stores::version(json.json);
    }
    let opened = match settings::open(&cli.global) {
        Ok(opened) => opened,
        Err(error) => {
            output::line(&format!("error initializing: {}", cmd::chain(error)))?;
            return Ok(Outcome::Failed);
        }
    };
    for warning in opened.store.warnings() {
        output::complain(&format!("warning: {}", output::safe(warning)));
    }
    verb(&opened, &cli.verb)
}

fn verb(opened: &Opened, verb: &Verb) -> Result<Outcome> {
    let store = &opened.store;
    match verb {
        Verb::Status { json } => stores::status(opened, json.json),
        Verb::Layers { tree, listing } => layers::list(store, listing, *tree),
        Verb::CreateLayer(words) => layers::create(store, words),
        Verb::ImportLayer { layer, file } => layers::import(store, layer, file.as_deref()),
        Verb::ApplyDiff { layer, file, json } => diffs::apply(store, layer, file.as_deref(), json.json),
        Verb::Diff { compared, file, uncompressed, gzip, zstd, bzip2, xz } => {
            let options = diffs::compression(*uncompressed, *gzip, *zstd, *bzip2, *xz)?;
            diffs::diff(store, compared, file.as_deref(), &options)
        }
        Verb::Changes(words) => diffs::changes(store, words),
        Verb::DiffSize(words) => diffs::size(store, words),
        Verb::Mount { opt, label, read_only, objects } => {
            mounts::mount(store, objects, opt, label.as_deref(), *read_only)
        }
        Verb::Unmount { force, objects } => mounts::unmount(store, objects, *force),
        Verb::Mounted(words) => mounts::mounted(store, words),
        Verb::DeleteLayer(words) => layers::delete(store, words),
        Verb::Layer(words) => layers::show(store, words),
        Verb::Images(listing) => images::list(store, listing),
        Verb::Image(words) => images::show(store, words),
        Verb::CreateImage { layer, name, id, digest, metadata, json } => {
            images::create(store, layer.as_deref(), name, id.as_deref(), digest.as_deref(), metadata, json.json)
        }
        Verb::DeleteImage { test, objects } => images::delete(store, objects, *test),
        Verb::Containers(listing) => containers::list(store, listing),
        Verb::Container(words) => containers::show(store, words),
        Verb::CreateContainer { image, name, id, volatile, metadata, id_map, json } => {
            containers::create(store, image, name, id.as_deref(), *volatile, metadata, id_map, json.json)
        }
        Verb::DeleteContainer(words) => containers::delete(store, words),
        Verb::Load { name, source, json } => transfer::load(store, source, name, json.json),
        Verb::Save { compression, image, target, json } => transfer::save(store, image, target, compression, json.json),
        Verb::Shutdown { force, json } => stores::shutdown(store, *force, json.json),
        Verb::Wipe { json } => stores::wipe(store, json.json),
        Verb::Version { json } => stores::version(json.json),
    }
}
