//! How words become flags: the rules of the `containers-storage` command, which are not those of getopt.
//!
//! Long flags stand behind two dashes, short ones behind one; both take their value from the next word or behind `=`, where
//! quotes around it are taken off. Booleans never take the next word, and only they can be joined as in `-tq`. Flags that
//! every verb takes may stand before the verb or behind it. A flag that is wrong before the verb and one behind it end with
//! different exit statuses, so this is worked out here and [`clap`] gets words that it cannot misunderstand: it knows which
//! flags there are, turns words into values, and writes help, completions and manual pages.
//!
//! Two liberties: flags may also follow the objects (the peers take them for objects there), unless a verb runs a command.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// What the words say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// A verb with its flags, in words that clap reads alike; and which global flags stood before the verb.
    Verb { words: Vec<OsString>, before: Vec<String> },
    /// Help was asked for: all of it, or a verb's.
    Help { verb: Option<String>, status: u8 },
    /// `--version`.
    Version,
    /// No verb at all.
    Nothing,
    /// A word that is no verb.
    Unknown(OsString),
    /// A flag is wrong.
    BadFlag { verb: Option<OsString>, text: String },
    /// Too few or too many objects.
    BadCount { verb: String, text: String },
}

/// Exit status of a flag that is wrong behind the verb.
pub(crate) const BAD_FLAG: u8 = 125;

/// Booleans as Go reads them.
fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"t" | b"T" | b"TRUE" | b"true" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"FALSE" | b"false" | b"False" => Some(false),
        _ => None,
    }
}

fn takes_value(arg: &Arg) -> bool {
    !matches!(arg.get_action(), ArgAction::SetTrue) && arg.get_num_args().is_none_or(|range| range.min_values() > 0)
}

fn is_flag(arg: &Arg) -> bool {
    arg.get_long().is_some() || arg.get_short().is_some()
}

/// One level of flags: those before the verb, or those behind it.
struct Level<'c> {
    flags: Vec<&'c Arg>,
}

/// What stands at the beginning of the remaining words.
enum Next {
    Flag,
    Help,
    /// The rest are no flags.
    End,
    Wrong(String),
}

impl<'c> Level<'c> {
    fn long(&self, name: &[u8]) -> Option<&'c Arg> {
        let named = |arg: &&&Arg| {
            arg.get_long().is_some_and(|long| long.as_bytes() == name)
                || arg.get_all_aliases().unwrap_or_default().iter().any(|alias| alias.as_bytes() == name)
        };
        self.flags.iter().find(named).copied()
    }

    fn short(&self, name: &[u8]) -> Option<&'c Arg> {
        let mut chars = std::str::from_utf8(name).ok()?.chars();
        let letter = chars.next().filter(|_| chars.as_str().is_empty());
        self.flags.iter().find(|arg| arg.get_short() == letter && letter.is_some()).copied()
    }

    /// Reads one word, and the next if it is the flag's value.
    fn next(&self, rest: &mut &[OsString], found: &mut Flags<'c>) -> Next {
        let Some((word, behind)) = rest.split_first() else { return Next::End };
        let bytes = word.as_bytes();
        if bytes.first() != Some(&b'-') || bytes.len() == 1 {
            return Next::End;
        }
        *rest = behind;
        if bytes == b"--" {
            return Next::End;
        }
        let (dashes, body) = if let Some(body) = bytes.strip_prefix(b"--") { (2, body) } else { (1, &bytes[1..]) };
        if body.first() == Some(&b'=') {
            return Next::Wrong(format!("bad flag syntax: {}", show(bytes)));
        }
        let (name, value) = match body.iter().position(|byte| *byte == b'=') {
            Some(at) => (&body[..at], Some(unquoted(&body[at + 1..]))),
            None => (body, None),
        };
        let dashed = format!("{}{}", if dashes == 2 { "--" } else { "-" }, show(name));
        let flag = if dashes == 2 { self.long(name) } else { self.short(name) };
        let Some(flag) = flag else {
            if dashes == 2 && name == b"help" || dashes == 1 && name == b"h" {
                return Next::Help;
            }
            // Booleans may be joined.
            let joined: Option<Vec<&Arg>> = name.iter().map(|letter| self.short(&[*letter])).collect();
            return match joined {
                Some(joined) if dashes == 1 && value.is_none() && !joined.iter().any(|flag| takes_value(flag)) => {
                    joined.iter().for_each(|flag| found.set(flag, true));
                    Next::Flag
                }
                _ => Next::Wrong(format!("flag provided but not defined: {dashed}")),
            };
        };
        if takes_value(flag) {
            let value = match (value, behind.split_first()) {
                (Some(value), _) => value.to_owned(),
                (None, Some((value, behind))) => {
                    *rest = behind;
                    value.as_bytes().to_owned()
                }
                (None, None) => return Next::Wrong(format!("flag needs an argument: {dashed}")),
            };
            found.values.push((flag, OsString::from_vec(value)));
        } else {
            let Some(on) = value.map_or(Some(true), boolean) else {
                let value = show(value.unwrap_or_default());
                return Next::Wrong(format!(
                    "invalid boolean value {value:?} for  {dashed}: strconv.ParseBool: parsing {value:?}: invalid syntax"
                ));
            };
            found.set(flag, on);
        }
        Next::Flag
    }
}

/// The flag as clap reads it: its long name if it has one.
fn dashed(flag: &Arg) -> String {
    match (flag.get_long(), flag.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => String::new(),
    }
}

/// Flags that were found; of booleans the last word counts.
#[derive(Default)]
struct Flags<'c> {
    values: Vec<(&'c Arg, OsString)>,
    booleans: Vec<(&'c Arg, bool)>,
}

impl<'c> Flags<'c> {
    fn set(&mut self, flag: &'c Arg, on: bool) {
        self.booleans.retain(|(other, _)| other.get_id() != flag.get_id());
        self.booleans.push((flag, on));
    }

    /// Words for clap: `--flag=value`.
    fn write(&self, into: &mut Vec<OsString>) {
        for (flag, value) in &self.values {
            let mut word = OsString::from(dashed(flag));
            word.push("=");
            word.push(value);
            into.push(word);
        }
        for (flag, on) in &self.booleans {
            if !matches!(flag.get_action(), ArgAction::SetTrue) {
                into.push(format!("{}={on}", dashed(flag)).into());
            } else if *on {
                into.push(dashed(flag).into());
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let flags = self.values.iter().map(|(flag, _)| flag).chain(self.booleans.iter().map(|(flag, _)| flag));
        flags.map(|flag| flag.get_id().to_string())
    }
}

fn show(bytes: &[u8]) -> String {
    crate::output::safe(&String::from_utf8_lossy(bytes))
}

/// Without the quotes around it, if there are two of a kind.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        _ => value,
    }
}

/// How many objects a verb takes.
fn counts(verb: &Command) -> (usize, Option<usize>) {
    let (mut least, mut most) = (0, Some(0));
    for arg in verb.get_positionals() {
        let fewest = arg.get_num_args().map_or(1, |range| range.min_values().max(1));
        least += if arg.is_required_set() { fewest } else { 0 };
        let many = matches!(arg.get_action(), ArgAction::Append)
            || arg.get_num_args().is_some_and(|range| range.max_values() > 1);
        most = if many { None } else { most.map(|most: usize| most + 1) };
    }
    (least, most)
}

/// Reads a command line without its first word.
pub(crate) fn read(command: &Command, line: &[OsString]) -> Words {
    let globals: Vec<&Arg> = command.get_arguments().filter(|arg| is_flag(arg)).collect();
    let first = Level { flags: globals.clone() };
    let mut before = Flags::default();
    let mut rest = line;
    loop {
        // Ours; the peers know a verb only.
        if rest.first().is_some_and(|word| word == "--version" || word == "-V") {
            return Words::Version;
        }
        let at = line.len() - rest.len();
        match first.next(&mut rest, &mut before) {
            Next::Flag => {}
            Next::End => break,
            // The long word is the one that is meant to be asked for.
            Next::Help => {
                let status = u8::from(line.get(at).is_some_and(|word| word == "-h"));
                return Words::Help { verb: None, status };
            }
            Next::Wrong(text) => return Words::BadFlag { verb: None, text },
        }
    }
    let Some((word, mut rest)) = rest.split_first() else { return Words::Nothing };
    let Some(verb) = word.to_str().and_then(|word| command.find_subcommand(word)) else {
        return Words::Unknown(word.clone());
    };
    // What the words behind the first object look like is the business of the command that they belong to.
    let runs_command = verb.get_positionals().any(Arg::is_trailing_var_arg_set);
    let second = Level { flags: verb.get_arguments().filter(|arg| is_flag(arg)).chain(globals).collect() };
    let mut behind = Flags::default();
    let mut objects: Vec<OsString> = Vec::new();
    loop {
        let left = rest.len();
        match second.next(&mut rest, &mut behind) {
            Next::Flag => {}
            Next::End => match rest.split_first() {
                Some((object, others)) if rest.len() == left && !runs_command => {
                    objects.push(object.clone());
                    rest = others;
                }
                _ => {
                    objects.extend_from_slice(rest);
                    break;
                }
            },
            Next::Help => return Words::Help { verb: Some(verb.get_name().to_owned()), status: BAD_FLAG },
            Next::Wrong(text) => return Words::BadFlag { verb: Some(word.clone()), text },
        }
    }
    let (least, most) = counts(verb);
    let typed = || show(word.as_bytes());
    if objects.len() < least {
        return Words::BadCount {
            verb: verb.get_name().to_owned(),
            text: format!("{}: more arguments required.", typed()),
        };
    }
    if most.is_some_and(|most| objects.len() > most) {
        let all: Vec<String> = objects.iter().map(|object| show(object.as_bytes())).collect();
        let text = format!("{}: too many arguments ([{}]).", typed(), all.join(" "));
        return Words::BadCount { verb: verb.get_name().to_owned(), text };
    }
    let mut words: Vec<OsString> = Vec::new();
    let named = before.names().collect();
    // Global flags go together, those behind the verb later, as the last one counts.
    for (flag, on) in std::mem::take(&mut behind.booleans) {
        if flag.is_global_set() { before.set(flag, on) } else { behind.set(flag, on) }
    }
    let (global, own) = std::mem::take(&mut behind.values).into_iter().partition(|(flag, _)| flag.is_global_set());
    before.values.extend::<Vec<_>>(global);
    behind.values = own;
    before.write(&mut words);
    words.push(verb.get_name().into());
    behind.write(&mut words);
    words.push("--".into());
    words.extend(objects);
    Words::Verb { words, before: named }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use clap::CommandFactory;

    use super::*;

    fn read_line(line: &[&str]) -> Words {
        let line: Vec<OsString> = line.iter().map(OsString::from).collect();
        read(&crate::cli::Cli::command(), &line)
    }

    fn words(line: &[&str]) -> String {
        match read_line(line) {
            Words::Verb { words, .. } => words.join(OsStr::new(" ")).into_string().unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_flags_become() {
        for (line, expected) in [
            (&["layers"][..], "layers --"),
            (&["layers", "-tq"], "layers --tree --quiet --"),
            (&["layers", "-t", "-t=false"], "layers --"),
            (&["-D", "layers", "--debug=F"], "layers --"),
            (&["-g=\"a b\"", "-g", "'c'", "layers"], "--graph=a b --graph='c' layers --"),
            (&["apply-diff", "--graph", "g", "-f", "x", "id"], "--graph=g applydiff --file=x -- id"),
            (&["create-layer", "", "-n=a", "--name", ""], "create-layer --name=a --name= -- "),
            (&["--storage-opt", "a=b", "layers", "--storage-opt=c"], "--storage-opt=a=b --storage-opt=c layers --"),
            (&["layer", "-", "--", "-j", "--"], "layer -- - -j --"),
            (&["--", "layer", "x", "-j"], "layer --json -- x"),
            (&["--transient-store=0", "layers"], "--transient-store=false layers --"),
        ] {
            assert_eq!(words(line), expected, "{line:?}");
        }
    }

    #[test]
    fn flags_with_a_short_name_only() {
        let flag = |name: &'static str| Arg::new(name).short(name.chars().next().unwrap());
        let verb = Command::new("verb").args([flag("q").action(ArgAction::SetTrue), flag("v")]).arg(Arg::new("object"));
        let command = Command::new("tool").subcommand(verb);
        let line = ["verb", "-q", "-v", "-x", "o"].map(OsString::from);
        let Words::Verb { words, .. } = read(&command, &line) else { panic!("not understood") };
        assert_eq!(words, ["verb", "-v=-x", "-q", "--", "o"]);
        let found = command.no_binary_name(true).try_get_matches_from(words).unwrap();
        let (_, found) = found.subcommand().unwrap();
        assert!(found.get_flag("q"));
        assert_eq!(found.get_one::<String>("v").unwrap(), "-x");
        assert_eq!(found.get_one::<String>("object").unwrap(), "o");
    }

    #[test]
    fn words_that_are_wrong() {
        for (line, expected) in [
            (&["layers", "--foo"][..], "flag provided but not defined: --foo"),
            (&["layers", "--foo=bar"], "flag provided but not defined: --foo"),
            (&["layers", "-tx"], "flag provided but not defined: -tx"),
            (&["create-layer", "-lfoo"], "flag provided but not defined: -lfoo"),
            (&["layers", "---x"], "flag provided but not defined: ---x"),
            (&["layers", "-=x"], "bad flag syntax: -=x"),
            (&["create-layer", "--id"], "flag needs an argument: --id"),
            (&["create-layer", "-i"], "flag needs an argument: -i"),
            (
                &["layers", "-t=maybe"],
                "invalid boolean value \"maybe\" for  -t: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
        ] {
            let expected = Words::BadFlag { verb: Some(line[0].into()), text: expected.to_owned() };
            assert_eq!(read_line(line), expected);
        }
        for line in [&["--foo", "layers"][..], &["--graph"], &["-x"]] {
            assert!(matches!(read_line(line), Words::BadFlag { verb: None, .. }), "{line:?}");
        }
        assert_eq!(read_line(&["-h"]), Words::Help { verb: None, status: 1 });
        assert_eq!(read_line(&["-D", "--help"]), Words::Help { verb: None, status: 0 });
        assert_eq!(read_line(&["umount", "-h"]), Words::Help { verb: Some("unmount".to_owned()), status: 125 });
        assert_eq!(read_line(&["-D"]), Words::Nothing);
        assert_eq!(read_line(&["nosuch", "-x"]), Words::Unknown("nosuch".into()));
        let count = |verb: &str, text: &str| Words::BadCount { verb: verb.to_owned(), text: text.to_owned() };
        assert_eq!(read_line(&["layer"]), count("layer", "layer: more arguments required."));
        assert_eq!(
            read_line(&["createlayer", "a", "b"]),
            count("create-layer", "createlayer: too many arguments ([a b]).")
        );
    }
}
