//! Tests under other kernels, in virtual machines: `cargo xtask vm`. vagrant/README.md tells what runs there.

mod kernel;
mod payload;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::{find, have, top};
use crate::say;

/// What `--matrix` runs: every Debian kernel that is supported, the oldest first.
const MATRIX: [&str; 4] = ["debian:bullseye", "debian:bookworm", "debian:trixie", "debian:sid"];
/// What the test command runs: the newest stable one.
const STABLE: &str = "debian:trixie";
/// The drivers that every kernel of the matrix has to give.
const EXPECTED: &str = "overlay vfs";

const USAGE: &str = "\
cargo xtask vm [--kernel KERNEL]... [--matrix] [--expect DRIVERS] [--time SECONDS] [TEST...]

  --kernel KERNEL   a bzImage, a directory with unpacked kernel packages, or debian:SUITE (fetched through apt);
                    may be given several times
  --matrix          debian:bullseye, bookworm, trixie and sid
  --expect DRIVERS  drivers that must work there (EXPECT_DRIVERS, or \"overlay vfs\"); one that does not is a failure
  --conformance NAME  of the conformance suite, only tests whose names contain NAME
  --payload         only put together, in target/vm/payload, what a machine runs (for Vagrant)
  --time SECONDS    a machine's time limit (1800)
  TEST              only tests whose names contain one of these
";

/// What was asked for.
#[derive(Debug)]
struct Plan {
    kernels: Vec<String>,
    expected: String,
    seconds: u32,
    payload_only: bool,
    conformance: String,
    tests: Vec<String>,
}

/// How a machine ended.
struct Ended {
    kernel: String,
    status: i32,
    release: String,
}

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a task runner may be told by the environment")]
    std::env::var(name).ok()
}

impl Plan {
    fn parse(args: &[String]) -> Result<Self> {
        let mut plan = Self {
            kernels: Vec::new(),
            expected: variable("EXPECT_DRIVERS").unwrap_or_else(|| EXPECTED.to_owned()),
            seconds: 1800,
            payload_only: false,
            conformance: String::new(),
            tests: Vec::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().with_context(|| format!("{arg} wants a value\n\n{USAGE}"));
            match arg.as_str() {
                "--kernel" => plan.kernels.push(value()?),
                "--matrix" => plan.kernels.extend(MATRIX.map(str::to_owned)),
                "--expect" => plan.expected = value()?,
                "--conformance" => plan.conformance = value()?,
                "--payload" => plan.payload_only = true,
                "--time" => plan.seconds = value()?.parse().context("--time wants whole seconds")?,
                flag if flag.starts_with('-') => bail!("no flag {flag}\n\n{USAGE}"),
                _ => plan.tests.push(arg.clone()),
            }
        }
        if plan.kernels.is_empty() && !plan.payload_only {
            bail!("which kernel?\n\n{USAGE}");
        }
        for word in plan.tests.iter().chain([&plan.expected, &plan.conformance]) {
            if !word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:- ".contains(&b)) {
                bail!("{word:?} is neither a test's name nor a list of drivers");
            }
        }
        Ok(plan)
    }
}

/// The task.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let plan = Plan::parse(args)?;
    if !plan.payload_only
        && let Some(reason) = impossible()
    {
        bail!("{reason}");
    }
    let payload = payload::gather(&plan.expected, &plan.conformance, &plan.tests)?;
    if plan.payload_only {
        say(&format!("{}: run ./run.sh there, as root, in the machine", payload.display()));
        return Ok(());
    }
    let mut all = Vec::new();
    for name in &plan.kernels {
        let kernel = kernel::find_or_fetch(name)?;
        all.push(boot(name, &kernel, &payload, plan.seconds)?);
    }
    say("\nkernels:");
    for ended in &all {
        let result = match ended.status {
            0 => "passed",
            1 => "FAILED",
            124 => "FAILED: time limit",
            _ => "FAILED: the machine ended without a result",
        };
        say(&format!("  {:<18} {:<28} {result}", ended.kernel, ended.release));
    }
    let failed = all.iter().filter(|ended| ended.status != 0).count();
    if failed > 0 {
        bail!("{failed} of {} kernels failed; the logs are in target/vm/logs", all.len());
    }
    Ok(())
}

/// Part of the test command: one kernel, and of the conformance suite what needs least time.
pub(crate) fn for_tests() -> Result<()> {
    let reason = impossible().or_else(|| kernel::find_or_fetch(STABLE).err().map(|error| format!("{error:#}")));
    if let Some(reason) = reason {
        say(&format!("skipped: tests under another kernel: {reason}"));
        return Ok(());
    }
    run(&["--kernel", STABLE, "root::tmpfs::overlay"].map(str::to_owned))
}

/// Why there can be no machines here, if so.
fn impossible() -> Option<String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Some("virtual machines are made for x86-64 only".to_owned());
    }
    ["qemu-system-x86_64", "busybox"]
        .into_iter()
        .find(|program| !have(program))
        .map(|program| format!("{program} is not installed"))
}

/// Runs the payload under a kernel. A machine that ends without a result, as emulators sometimes do, is tried once more.
fn boot(name: &str, kernel: &Path, payload: &Path, seconds: u32) -> Result<Ended> {
    let ended = boot_once(name, kernel, payload, seconds)?;
    if ended.status != 125 {
        return Ok(ended);
    }
    say(&format!("{name}: the machine ended without a result; once more"));
    boot_once(name, kernel, payload, seconds)
}

fn boot_once(name: &str, kernel: &Path, payload: &Path, seconds: u32) -> Result<Ended> {
    let logs = top().join("target/vm/logs");
    std::fs::create_dir_all(&logs)?;
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let log = logs.join(format!("{plain}.log"));
    say(&format!("== {name}: {}, log in {}", kernel.display(), log.display()));
    let mut child = Command::new("bash")
        .arg(top().join("vagrant/qemu.sh"))
        // This machine's programs; the payload as it lies there; disks for tests, for quotas on ext4, for quotas on xfs.
        .args(["-r", "/", "-p", "9p", "-m", "2048", "-d", "4G", "-d", "1G", "-d", "1G", "-t"])
        .arg(seconds.to_string())
        .arg("-o")
        .arg(logs.join(&plain))
        .args([kernel, payload])
        .env("BUSYBOX", find("busybox").unwrap_or_default())
        .env("VM_CACHE", top().join("target/vm/modules"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting vagrant/qemu.sh")?;
    let mut release = "?".to_owned();
    let mut file = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).split(b'\n');
    while let Some(line) = lines.next().transpose()? {
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(file, "{line}")?;
        if let Some(rest) = line.strip_prefix("kernel: ") {
            release = rest.split(',').next().unwrap_or(rest).to_owned();
        }
        // The log has every case; here, what one looks for.
        if !line.starts_with("passed: ") {
            say(&line);
        }
    }
    let status = child.wait()?.code().unwrap_or(125);
    Ok(Ended { kernel: name.to_owned(), status, release })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::Plan;
    use crate::run::{have, run, top};
    use std::process::Command;

    fn parse(words: &str) -> anyhow::Result<Plan> {
        Plan::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_a_plan() {
        let plan = parse("--kernel debian:sid --kernel /boot/k --time 5 overlay root::xfs").unwrap();
        assert_eq!(plan.kernels, ["debian:sid", "/boot/k"]);
        assert_eq!((plan.seconds, plan.tests.join(" ").as_str()), (5, "overlay root::xfs"));
        assert_eq!(parse("--matrix").unwrap().kernels.len(), super::MATRIX.len());
        for bad in ["overlay", "--kernel", "--matrix --nonsense", "--matrix $(reboot)", "--matrix --time soon"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "says what it skips")]
    fn scripts_and_vagrantfile_parse() {
        let dir = top().join("vagrant");
        for script in ["qemu.sh", "run.sh", "provision.sh"] {
            run(Command::new("bash").arg("-n").arg(dir.join(script))).unwrap();
        }
        if have("ruby") {
            run(Command::new("ruby").arg("-c").arg(dir.join("Vagrantfile"))).unwrap();
        } else {
            eprintln!("skipped: ruby is not installed, so nobody reads the Vagrantfile");
        }
    }
}
