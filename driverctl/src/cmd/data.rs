//! Data items and directories of layers, images and containers.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use graph_store::Error;

use super::Outcome;
use crate::cli::data::{ItemInFile, Listed};
use crate::output::{self, safe};

/// Lists keys.
pub(crate) fn list(words: &Listed, keys: impl Fn(&str) -> Result<Vec<String>, Error>) -> Result<Outcome> {
    let keys = keys(&words.object)?;
    if words.json.json {
        output::json(&(!keys.is_empty()).then_some(keys))?;
    } else {
        for key in keys {
            output::line(&safe(&key))?;
        }
    }
    Ok(Outcome::Done)
}

/// Prints an item as it is, or puts it into a file. No file is made for an item that is not there.
pub(crate) fn get(words: &ItemInFile, item: impl Fn(&str, &str) -> Result<Vec<u8>, Error>) -> Result<Outcome> {
    let data = item(&words.item.object, &words.item.key)?;
    match &words.file {
        Some(path) => {
            let mut file = File::create(path).with_context(|| format!("open {}", path.display()))?;
            file.write_all(&data).with_context(|| format!("write {}", path.display()))?;
        }
        None => output::bytes(&data)?,
    }
    Ok(Outcome::Done)
}

/// Sets an item to what a file has, or standard input.
pub(crate) fn set(words: &ItemInFile, item: impl Fn(&str, &str, &[u8]) -> Result<(), Error>) -> Result<Outcome> {
    let mut data = Vec::new();
    match &words.file {
        Some(path) => {
            let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            file.read_to_end(&mut data).with_context(|| format!("read {}", path.display()))?;
        }
        None => drop(std::io::stdin().lock().read_to_end(&mut data).context("read standard input")?),
    }
    item(&words.item.object, &words.item.key, &data)?;
    Ok(Outcome::Done)
}

/// Prints a size or a digest.
pub(crate) fn print<T: Display>(value: Result<T, Error>) -> Result<Outcome> {
    output::line(&safe(&value?.to_string()))?;
    Ok(Outcome::Done)
}

/// Prints a directory, byte for byte: the next command is to find it.
pub(crate) fn directory(path: Result<PathBuf, Error>) -> Result<Outcome> {
    let mut line = path?.as_os_str().as_bytes().to_owned();
    line.push(b'\n');
    output::bytes(&line)?;
    Ok(Outcome::Done)
}
