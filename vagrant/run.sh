#!/bin/bash
# The tests in a machine: the same script under Vagrant, in vagrant/qemu.sh, and by hand. Run it as root with the payload as
# working directory. README.md beside it says what tests may rely on.
#
#   env            file in the payload, KEY=VALUE lines: the next three
#   EXPECT_DRIVERS drivers that must work here; one that doesn't is a failure
#   TESTS          only tests whose names contain one of these words
#   CONFORMANCE    of the conformance suite only such tests
#   VM_DISK1..3    empty disks that may be overwritten; without them, files on loop devices
#
# Results go to /out, when there is such a directory. Exit status: 0 all passed, 1 not.
set -uo pipefail
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C RUST_BACKTRACE=0
here=$PWD
# What the caller's environment says goes before the file.
if [ -r ./env ]; then
	while IFS='=' read -r key value; do
		[ -z "$key" ] || [ -n "${!key:-}" ] || export "$key=$value"
	done <./env
fi
expected=${EXPECT_DRIVERS-overlay vfs}
failed=()
out=/dev/null
[ ! -d /out ] || out=/out

note() { printf '%s\n' "$*"; }
fail() { failed+=("$*"); note "FAILED: $*"; }

# --- the machine ------------------------------------------------------------
note "kernel: $(uname -r), $(uname -m), $(nproc) processors"
for driver in $expected; do
	case $driver in overlay | aufs | btrfs) modprobe "$driver" 2>/dev/null ;; esac
done
note "file systems: $(awk '{ print $NF }' /proc/filesystems | tr '\n' ' ')"
[ ! -r /sys/module/aufs/version ] || note "aufs: $(cat /sys/module/aufs/version)"

# --- scratch disks -----------------------------------------------------------
# Nothing may be tested on this machine's root: it can be an overlay itself.
mkdir -p /scratch
disk() { # number, size in MiB: an empty block device
	local given="VM_DISK$1" device
	if [ -b "${!given:-}" ]; then echo "${!given}"; return; fi
	truncate -s "$2M" "/var/tmp/vm-disk$1" && device=$(losetup --find --show "/var/tmp/vm-disk$1") && echo "$device"
}
mounted() { # place, mkfs..., --, mount options, device
	local place=$1; shift
	local make=()
	while [ "$1" != -- ]; do make+=("$1"); shift; done
	shift
	mkdir -p "$place"
	"${make[@]}" "$2" && mount -o "$1" "$2" "$place"
}
if mounted /scratch mkfs.ext4 -q -F -- defaults "$(disk 1 4096)"; then
	mkdir -p /scratch/images /scratch/tmp && chmod 1777 /scratch/tmp
	export SCRATCH=/scratch/images TMPDIR=/scratch/tmp
else
	fail "no scratch disk"
fi
if mounted /scratch/ext4 mkfs.ext4 -q -F -O quota,project,verity -- prjquota "$(disk 2 1024)"; then
	export QUOTA_EXT4=/scratch/ext4 VERITY_EXT4=/scratch/ext4
else
	note "skipped: no ext4 with project quota and verity on this kernel"
fi
if mounted /scratch/xfs mkfs.xfs -q -f -K -- prjquota "$(disk 3 1024)"; then
	export QUOTA_XFS=/scratch/xfs
else
	note "skipped: no xfs with project quota on this kernel"
fi

# --- drivers -----------------------------------------------------------------
for driver in $expected; do
	root=/scratch/status/$driver
	if status=$(./driverctl --graph "$root/graph" --run "$root/run" --storage-driver "$driver" --debug status 2>&1); then
		note "driver $driver:"
		note "$status" | sed 's/^/    /'
	else
		fail "driver $driver is expected and does not work here: $status"
	fi
	./driverctl --graph "$root/graph" --run "$root/run" --storage-driver "$driver" status --json >"/scratch/status-$driver.json" 2>&1
	[ "$out" = /dev/null ] || cp "/scratch/status-$driver.json" "$out/"
done

# --- tests -------------------------------------------------------------------
for test in tests/*; do
	name=${test##*/}
	log=/scratch/$name.log
	leave_out=()
	if [ "$name" = conformance ]; then
		for driver in $("$here/$test" --list | sed -n 's/^[^:]*::[^:]*::\([^:]*\)::.*/\1/p' | sort -u); do
			case " $expected " in
			*" $driver "*) ;;
			*) leave_out+=(--skip "::$driver::"); note "skipped: conformance of $driver: not in EXPECT_DRIVERS" ;;
			esac
		done
	fi
	note "== $name"
	: >"$log"
	words=${TESTS:-}
	[ "$name" != conformance ] || words=${CONFORMANCE:-$words}
	# shellcheck disable=SC2206 # words on purpose
	words=($words)
	for word in "${words[@]:-}"; do
		"$here/$test" --test-threads="$(nproc)" ${leave_out[@]+"${leave_out[@]}"} ${word:+"$word"} 2>&1 </dev/null |
			tee -a "$log" || fail "$name"
	done
	[ "$out" = /dev/null ] || cp "$log" "$out/"
done
# A suite that skips every case of an expected driver says "ok" too.
if [ -z "${TESTS:-}${CONFORMANCE:-}" ] && [ -r /scratch/conformance.log ]; then
	for driver in $expected; do
		grep -Eq "^test root::[a-z0-9]+::$driver::.* ok$" /scratch/conformance.log ||
			fail "conformance ran nothing for driver $driver"
	done
fi

note "== messages of the kernel that tell of a fault"
dmesg 2>/dev/null | grep -E 'BUG|WARNING|Oops|blocked for more' | head -n 20
if [ ${#failed[@]} -gt 0 ]; then
	note "result: FAILED on $(uname -r): ${failed[*]}"
	exit 1
fi
note "result: passed on $(uname -r)"
