//! Measurements beside packaged peers: the same data, the same fresh file system, the same run, every case in turn.
//!
//! CPU seconds (user and system, of the command and the children it waited for) come first: they hold on a busy machine,
//! wall time doesn't. Results are ratios to a peer of the same round. Peers that aren't installed are left out, by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

mod store;

const HELP: &str = "\
graph-benches [--data DIR] [--rounds N] [--sets base,small,big] [--json FILE]

graph-benches --store 5,5000 [--rounds N]

The second form measures what operations cost in stores of so many layers, and how many of them eight processes do in a
second, with driverctl and the packaged containers-storage. The first one imports each layer into a fresh store with
driverctl, the packaged containers-storage and umoci, from the data of `cargo xtask perfdata`. Both need root (a loop-mounted
ext4 in memory).
";

/// Set in the process that already has a mount namespace of its own.
const INSIDE: &str = "GRAPHDRIVER_BENCH_INSIDE";

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn say(text: &str) {
    println!("{text}");
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = words.split_first()
        && first == store::MEASURED
    {
        return store::measured(rest);
    }
    let mut data = PathBuf::from("target/perfdata");
    let mut rounds = 3_usize;
    let mut sets = vec!["base".to_owned(), "small".to_owned(), "big".to_owned()];
    let mut json = None;
    let mut sizes: Vec<usize> = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--data" => data = value()?.into(),
            "--store" => {
                let size = |size: &str| size.parse().context("--store takes whole numbers");
                sizes = value()?.split(',').map(size).collect::<Result<_>>()?;
            }
            "--rounds" => rounds = value()?.parse().context("--rounds takes a whole number")?,
            "--sets" => sets = value()?.split(',').map(str::to_owned).collect(),
            "--json" => json = Some(PathBuf::from(value()?)),
            _ => {
                say(HELP);
                return Ok(());
            }
        }
    }
    #[expect(clippy::disallowed_methods, reason = "how the program finds out that it runs in its own mount namespace")]
    if std::env::var_os(INSIDE).is_none() {
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .status()
            .context("cannot run unshare")?;
        ensure!(status.success(), "the measurement failed: {status}");
        return Ok(());
    }
    let scratch = Scratch::mount()?;
    if !sizes.is_empty() {
        return store::measure(&scratch.dir, &sizes, rounds);
    }
    let results = measure(&scratch.dir, &data, &sets, rounds)?;
    report(&results);
    if let Some(path) = json {
        fs::write(&path, serde_json::to_vec_pretty(&to_json(&results))?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A fresh ext4 in memory. It lives in this process's mount namespace and goes with it.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn mount() -> Result<Self> {
        let dir = PathBuf::from("/mnt");
        quiet(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16g", "graph-benches"]).arg(&dir))?;
        let image = dir.join("ext4.img");
        fs::File::create(&image)?.set_len(12 << 30)?;
        quiet(
            Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image),
        )?;
        let fs_dir = dir.join("fs");
        fs::create_dir(&fs_dir)?;
        quiet(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&fs_dir))?;
        Ok(Self { dir: fs_dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let unmounted = quiet(Command::new("umount").arg(&self.dir));
        drop(unmounted.and_then(|()| quiet(Command::new("umount").arg("/mnt"))));
    }
}

struct Sample {
    set: String,
    case: &'static str,
    cpu: f64,
    wall: f64,
}

fn measure(scratch: &Path, data: &Path, sets: &[String], rounds: usize) -> Result<Vec<Sample>> {
    let driverctl = std::env::current_exe()?.with_file_name("driverctl");
    ensure!(driverctl.exists(), "{} is not built", driverctl.display());
    let data = data.canonicalize().with_context(|| format!("no data in {}: cargo xtask perfdata", data.display()))?;
    let mut samples = Vec::new();
    let cases = ["driverctl overlay", "driverctl vfs", "containers-storage overlay", "containers-storage vfs", "umoci"];
    // Round 0 is not counted: in a virtual machine, whoever first writes to a page of memory waits for the host to give it.
    for round in 0..=rounds {
        for set in sets {
            let layer = data.join(format!("{set}.tar.gz"));
            ensure!(layer.exists(), "no {}: cargo xtask perfdata", layer.display());
            // Whoever came first would pay for bringing it into the page cache.
            std::io::copy(&mut fs::File::open(&layer)?, &mut std::io::sink())?;
            // Another one first in every round, and forward and backward in turn: each meets the memory as the one before it
            // left it, which in a virtual machine is worth a tenth of a second.
            let mut order: Vec<&'static str> = cases.iter().copied().cycle().skip(round).take(cases.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for case in order {
                let dir = scratch.join("case");
                fs::create_dir(&dir)?;
                let command = match case.split_once(' ') {
                    Some(("driverctl", driver)) => Some(store_command(&driverctl, &dir, driver, &layer)),
                    Some((peer, driver)) => find(peer).map(|program| store_command(&program, &dir, driver, &layer)),
                    None => umoci(&data, set, &dir),
                };
                if let Some(mut command) = command {
                    // The page cache is warm and nothing of the case before is left to write.
                    quiet(&mut Command::new("sync"))?;
                    let (cpu, wall) = timed(&mut command)?;
                    if round > 0 {
                        samples.push(Sample { set: set.clone(), case, cpu, wall });
                    }
                } else if round == 0 {
                    say(&format!("not installed, left out: {case}"));
                }
                drop(quiet(Command::new("sh").args(["-c", "umount \"$0\"/root/* 2>/dev/null || true"]).arg(&dir)));
                fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
            }
        }
    }
    Ok(samples)
}

fn store_command(program: &Path, dir: &Path, driver: &str, layer: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--graph").arg(dir.join("root")).arg("--run").arg(dir.join("run"));
    command.args(["--storage-driver", driver, "import-layer", "--file"]).arg(layer);
    command
}

fn umoci(data: &Path, set: &str, dir: &Path) -> Option<Command> {
    let mut command = Command::new(find("umoci")?);
    command
        .args(["raw", "unpack", "--image", &format!("{}:{set}", data.join("oci").display())])
        .arg(dir.join("rootfs"));
    Some(command)
}

fn find(program: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the path is where programs are")]
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn quiet(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(())
}

/// CPU seconds of all children waited for so far.
fn children_cpu() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("/proc/self/stat")?.1;
    let ticks: f64 = after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

fn timed(command: &mut Command) -> Result<(f64, f64)> {
    let before = children_cpu()?;
    let began = Instant::now();
    let out = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().with_context(|| format!("{command:?}"))?;
    let wall = began.elapsed().as_secs_f64();
    ensure!(out.status.success(), "{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    Ok((children_cpu()? - before, wall))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Set, case, median CPU seconds, median wall seconds, CPU ratio to the packaged containers-storage on overlay.
fn rows(samples: &[Sample]) -> Vec<(String, &'static str, f64, f64, Option<f64>)> {
    let mut keys: Vec<(String, &'static str)> = Vec::new();
    for sample in samples {
        let key = (sample.set.clone(), sample.case);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let of = |set: &str, case: &str, what: fn(&Sample) -> f64| {
        median(samples.iter().filter(|s| s.set == set && s.case == case).map(what).collect())
    };
    let row = |(set, case): (String, &'static str)| {
        let (cpu, wall) = (of(&set, case, |s| s.cpu), of(&set, case, |s| s.wall));
        let peer = of(&set, "containers-storage overlay", |s| s.cpu);
        (set, case, cpu, wall, (peer > 0.0).then(|| cpu / peer))
    };
    keys.into_iter().map(row).collect()
}

fn report(samples: &[Sample]) {
    say(&format!("{:8} {:28} {:>8} {:>8} {:>10}", "layer", "case", "CPU s", "wall s", "CPU ratio"));
    for (set, case, cpu, wall, ratio) in rows(samples) {
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        say(&format!("{set:8} {case:28} {cpu:8.2} {wall:8.2} {ratio:>10}"));
    }
}

fn to_json(samples: &[Sample]) -> serde_json::Value {
    rows(samples)
        .into_iter()
        .map(|(set, case, cpu, wall, ratio)| {
            serde_json::json!({"layer": set, "case": case, "cpu_seconds": cpu, "wall_seconds": wall,
                "cpu_ratio_to_containers_storage": ratio})
        })
        .collect()
}
