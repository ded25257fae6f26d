//! What operations on a store cost, small and large, and how many of them eight processes do together.
//!
//! Every command is run by a process of its own ([`measured`]), which then knows the CPU time and the memory of just this one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::{find, quiet, say};

/// What a measured command is run through.
pub(crate) const MEASURED: &str = "--measured";
const OPERATIONS: [&str; 5] = ["create", "mount", "unmount", "delete", "layers"];
const PROCESSES: u32 = 8;

/// One program on one size of store: milliseconds of CPU time and kilobytes of memory of each operation.
struct Costs {
    program: &'static str,
    layers: usize,
    cpu: BTreeMap<&'static str, f64>,
    memory: BTreeMap<&'static str, i64>,
}

/// Runs a command and prints the microseconds of CPU time and the kilobytes that it took at most.
pub(crate) fn measured(words: &[String]) -> Result<()> {
    let (program, words) = words.split_first().context("nothing to measure")?;
    let status = Command::new(program).args(words).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{program} {words:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    say(&format!("{cpu} {}", usage.max_rss()));
    Ok(())
}

/// Measures and prints.
pub(crate) fn measure(scratch: &Path, sizes: &[usize], rounds: usize) -> Result<()> {
    let driverctl = std::env::current_exe()?.with_file_name("driverctl");
    ensure!(driverctl.exists(), "{} is not built", driverctl.display());
    let mut programs = vec![("driverctl", driverctl)];
    match find("containers-storage") {
        Some(peer) => programs.push(("containers-storage", peer)),
        None => say("not installed, left out: containers-storage"),
    }
    let mut costs = Vec::new();
    for &layers in sizes {
        for (name, program) in &programs {
            let store = Store::new(scratch, program, layers)?;
            costs.push(store.costs(name, rounds)?);
            store.remove()?;
        }
    }
    report(&costs);
    let mut rates: Vec<f64> = Vec::new();
    for (name, program) in &programs {
        let store = Store::new(scratch, program, 5)?;
        let rate = store.together(rounds)?;
        store.remove()?;
        let ratio =
            rates.first().map_or(String::new(), |ours| format!("; driverctl does {:.1} times as many", ours / rate));
        say(&format!(
            "{PROCESSES} processes, create, mount, unmount, delete: {name} {rate:.0} operations a second{ratio}"
        ));
        rates.push(rate);
    }
    Ok(())
}

/// A store with so many layers, one on the other by tens.
struct Store {
    dir: PathBuf,
    program: PathBuf,
}

impl Store {
    fn new(scratch: &Path, program: &Path, layers: usize) -> Result<Self> {
        let dir = scratch.join("case");
        fs::create_dir(&dir)?;
        let store = Self { dir, program: program.to_owned() };
        quiet(&mut store.command(&["layers"]))?;
        drop(quiet(&mut store.command(&["shutdown"])));
        store.seed(layers)?;
        Ok(store)
    }

    fn seed(&self, layers: usize) -> Result<()> {
        let id = |n: usize| format!("{:064x}", (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let home = self.dir.join("root/overlay");
        let mut records = Vec::new();
        for n in 0..layers {
            let below: Vec<usize> = (n / 10 * 10..n).rev().collect();
            let parent = below.first().map_or(String::new(), |below| format!(r#""parent":"{}","#, id(*below)));
            records.push(format!(
                r#"{{"id":"{}","names":["layer-{n}"],{parent}"created":"2026-11-21T06:52:14.114090173Z"}}"#,
                id(n)
            ));
            let layer = home.join(id(n));
            for part in ["", "diff", "work", "merged"] {
                fs::create_dir(layer.join(part))?;
            }
            fs::write(layer.join("link"), link(n))?;
            if below.is_empty() {
                fs::create_dir(layer.join("empty"))?;
            } else {
                let lowers: Vec<String> = below.iter().map(|below| format!("l/{}", link(*below))).collect();
                fs::write(layer.join("lower"), lowers.join(":"))?;
            }
            symlink(format!("../{}/diff", id(n)), home.join("l").join(link(n)))?;
        }
        fs::write(self.dir.join("root/overlay-layers/layers.json"), format!("[{}]", records.join(",")))?;
        // Whoever comes first reads what has changed.
        quiet(&mut self.command(&["layers"]))
    }

    fn global(&self) -> Vec<String> {
        let path = |name| self.dir.join(name).display().to_string();
        ["--graph", &path("root"), "--run", &path("run"), "--storage-driver", "overlay"].map(str::to_owned).to_vec()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.global()).args(words);
        command
    }

    /// Milliseconds and kilobytes.
    fn measured(&self, words: &[&str]) -> Result<(f64, i64)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(MEASURED).arg(&self.program).args(self.global()).args(words);
        let out = command.output()?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout)?;
        let (cpu, memory) = text.trim().split_once(' ').context("no measurement")?;
        Ok((cpu.parse::<f64>()? / 1000.0, memory.parse()?))
    }

    fn costs(&self, program: &'static str, rounds: usize) -> Result<Costs> {
        let mut costs = Costs { program, layers: 0, cpu: BTreeMap::new(), memory: BTreeMap::new() };
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 0..rounds {
            let id = format!("measured-{round}");
            for operation in OPERATIONS {
                let words: &[&str] = match operation {
                    "create" => &["create-layer", "--id", &id, "layer-4"],
                    "mount" => &["mount", &id],
                    "unmount" => &["unmount", &id],
                    "delete" => &["delete-layer", &id],
                    _ => &["layers"],
                };
                let (cpu, memory) = self.measured(words)?;
                times.entry(operation).or_default().push(cpu);
                let most = costs.memory.entry(operation).or_default();
                *most = memory.max(*most);
            }
        }
        costs.layers = fs::read_dir(self.dir.join("root/overlay/l"))?.count();
        costs.cpu = times.into_iter().map(|(operation, times)| (operation, crate::median(times))).collect();
        Ok(costs)
    }

    /// Operations a second of several processes at once.
    fn together(&self, rounds: usize) -> Result<f64> {
        let script = r#"i=0; while [ $i -lt "$rounds" ]; do i=$((i+1)); l=worker-$w-$i
            "$0" "$@" create-layer --id $l layer-4 && "$0" "$@" mount $l && "$0" "$@" unmount $l && "$0" "$@" delete-layer $l || exit 1
            done"#;
        let began = Instant::now();
        let mut workers = Vec::new();
        for worker in 0..PROCESSES {
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(&self.program).args(self.global());
            command.env("w", worker.to_string()).env("rounds", rounds.to_string());
            workers.push(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
        }
        for worker in workers {
            let out = worker.wait_with_output()?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(f64::from(PROCESSES) * 4.0 * rounds as f64 / began.elapsed().as_secs_f64())
    }

    fn remove(self) -> Result<()> {
        drop(quiet(Command::new("sh").args(["-c", "umount \"$0\"/root/* 2>/dev/null || true"]).arg(&self.dir)));
        fs::remove_dir_all(&self.dir).with_context(|| self.dir.display().to_string())
    }
}

/// The name of a layer's link: 26 of the characters of base32.
fn link(number: usize) -> String {
    let mut rest = number;
    let mut text = String::new();
    for _ in 0..26 {
        text.push(char::from(b'A' + u8::try_from(rest % 26).unwrap_or_default()));
        rest /= 26;
    }
    text
}

fn report(costs: &[Costs]) {
    say(&format!(
        "{:20} {:>7} {:10} {:>8} {:>8} {:>10} {:>10}",
        "program", "layers", "operation", "CPU ms", "MiB", "to 1st row", "to peer"
    ));
    for operation in OPERATIONS {
        for of in costs {
            let cpu = |costs: &Costs| costs.cpu.get(operation).copied().unwrap_or_default();
            let small = costs.iter().find(|other| other.program == of.program).map_or(1.0, cpu);
            let peer = costs.iter().find(|other| other.program != of.program && other.layers == of.layers).map(cpu);
            let peer = peer.map_or_else(|| "-".to_owned(), |peer| format!("{:.2}", cpu(of) / peer));
            let memory = of.memory.get(operation).copied().unwrap_or_default() / 1024;
            say(&format!(
                "{:20} {:7} {operation:10} {:8.2} {memory:8} {:>10.2} {peer:>10}",
                of.program,
                of.layers,
                cpu(of),
                cpu(of) / small
            ));
        }
    }
}
