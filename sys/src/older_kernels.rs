//! The other modules' tests once more, where newer system calls are missing: a filter makes the kernel answer `ENOSYS` to
//! them, as an older one would.

#![allow(unsafe_code, reason = "a filter for system calls has no safe interface here")]

use std::ffi::c_long;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A call to refuse, for which value of its second argument (all if `None`), and how.
type Refusal = (c_long, Option<u32>, i32);

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where `struct seccomp_data` has the call's number and the lower half of its second argument (little endian).
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = 24;

fn filter(refusals: &[Refusal]) -> Vec<libc::sock_filter> {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut program = Vec::new();
    for &(number, argument, errno) in refusals {
        let answer = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
        program.push(step(LOAD, NUMBER, 0, 0));
        let number = u32::try_from(number).unwrap();
        if let Some(argument) = argument {
            program.push(step(EQUAL, number, 0, 3));
            program.push(step(LOAD, SECOND_ARGUMENT, 0, 0));
            program.push(step(EQUAL, argument, 0, 1));
        } else {
            program.push(step(EQUAL, number, 0, 1));
        }
        program.push(step(RETURN, answer, 0, 0));
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    program
}

/// Runs this test program's tests whose names contain one of `names` under a filter, and gives how many passed.
fn run_tests(names: &[&str], refusals: &[Refusal]) -> usize {
    let program = filter(refusals);
    let mut command = Command::new("/proc/self/exe");
    command.args(["--test-threads=1"]).args(names);
    let install = move || -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(u16::MAX),
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: plain values for the first; for the second, the kernel reads `len` instructions of a list that this
        // closure owns.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(install) };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter(|line| line.ends_with("... ok")).count()
}

#[test]
fn all_works_without_the_calls_of_linux_5_6_and_later() {
    const MISSING: i32 = libc::ENOSYS;
    let refusals = [
        (libc::SYS_openat2, None, MISSING),
        (457, None, MISSING), // statmount
        (458, None, MISSING), // listmount
        (463, None, MISSING), // setxattrat
        (464, None, MISSING), // getxattrat
        (465, None, MISSING), // listxattrat
        (466, None, MISSING), // removexattrat
        (467, None, MISSING), // open_tree_attr
    ];
    let names =
        ["resolve::", "xattr::", "mountinfo::", "statmount::", "probe::", "mount::", "idmap::", "statx::", "remove::"];
    let passed = run_tests(&names, &refusals);
    assert!(passed > 30, "only {passed} tests were run");
}

#[test]
fn a_sandbox_that_answers_eperm_is_taken_for_a_missing_call() {
    let refusals = [(libc::SYS_openat2, None, libc::EPERM), (465, None, libc::EPERM)];
    let passed = run_tests(&["resolve::tests::the_way", "xattr::tests::open_path"], &refusals);
    assert_eq!(passed, 2);
}

#[test]
fn overlay_takes_directories_by_name_where_it_does_not_take_descriptors() {
    const FSCONFIG_SET_FD: u32 = 5;
    let refusals = [(libc::SYS_fsconfig, Some(FSCONFIG_SET_FD), libc::EINVAL)];
    let passed = run_tests(&["mount::tests::root_overlay_by", "mount::tests::root_mapped"], &refusals);
    assert_eq!(passed, 3);
}
