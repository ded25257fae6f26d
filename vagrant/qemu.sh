#!/bin/bash
# Runs a directory's run.sh under another kernel, in a machine that is thrown away.
#
#   qemu.sh [options] KERNEL PAYLOAD
#
#   KERNEL   a bzImage or vmlinux, or a directory with unpacked Debian kernel packages
#   PAYLOAD  a directory with an executable run.sh; the guest sees it as /payload
#            (a writable copy; with -p 9p the directory itself, read-only)
#
#   -a kvm|tcg|auto  accelerator (auto: kvm where the processor does it, else tcg)
#   -c N             processors (2)      -m MIB  memory (1024)
#   -t SECONDS       time limit (300)    -k ARGS more kernel arguments
#   -M "a b ..."     modules to load (a list below; "" for none)
#   -p initrd|disk|9p  how PAYLOAD travels (initrd)
#   -r DIR           guest root: DIR over 9p, read-only, under an overlay on tmpfs
#                    ("-r /" gives the guest this machine's programs);
#                    without -r the guest has busybox only
#   -d SIZE          add an empty scratch disk (as often as wanted; 512M, 2G, ...);
#                    the guest finds them as $VM_DISK1, $VM_DISK2, ...
#   -o DIR           unpack what run.sh leaves in /out into DIR
#   -v               show the kernel's console on stderr while running
#
# stdout carries run.sh's stdout and stderr.  Exit status: that of run.sh;
# 124 time limit; 125 the guest ended without a status (the console's last lines
# go to stderr); 126 could not start.
#
# Needs: qemu-system-x86_64, a static busybox, xz or zstd, e2fsprogs (-p disk).
set -euo pipefail

say() { printf 'vm: %s\n' "$*" >&2; }
die() { say "$@"; exit 126; }

accel=auto cpus=2 mem=1024 limit=300 kargs= how=initrd root= out= verbose=0
modules="virtio_pci virtio_console virtio_blk virtio_rng 9p 9pnet_virtio
 overlay fuse crc32c_generic crc32c_intel crc32c_cryptoapi ext4 xfs btrfs erofs loop aufs quota_v2 xxhash_generic"
disks=()
while getopts a:c:m:t:k:M:p:r:d:o:v opt; do
	case $opt in
	a) accel=$OPTARG ;; c) cpus=$OPTARG ;; m) mem=$OPTARG ;;
	t) limit=$OPTARG ;; k) kargs=$OPTARG ;; M) modules=$OPTARG ;;
	p) how=$OPTARG ;; r) root=$OPTARG ;; d) disks+=("$OPTARG") ;;
	o) out=$OPTARG ;; v) verbose=1 ;; *) exit 126 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 126; }
kernel=$1 payload=$2
[ -x "$payload/run.sh" ] || die "$payload/run.sh is not executable"

qemu=${QEMU:-qemu-system-x86_64}
busybox=${BUSYBOX:-/bin/busybox}
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vm-modules}
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'say "failed at line $LINENO"; exit 126' ERR
mkdir -p "$cache"

# newc archive of directory $1, owned by root, on stdout
pack() { (cd "$1" && find . -print | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null); }

# --- kernel and modules -------------------------------------------------
image=$kernel base=
if [ -d "$kernel" ]; then
	kernel=$(cd "$kernel" && pwd)
	image=$(find "$kernel" -name 'vmlinuz*' -type f | head -n1)
	[ -n "$image" ] || die "no vmlinuz under $kernel"
	base=$(find "$kernel" -path '*/lib/modules/*' -name kernel -type d | head -n1)
	base=${base%/kernel}
fi

# The modules asked for, with what they depend on, decompressed, in load order.
# Dependencies are read from each module's own .modinfo, so neither kmod nor a
# modules.dep (which packages do not ship) is needed.  Cached per kernel and
# list: neither changes between runs.
unpack() {
	case $1 in
	*.xz) xz -dc <"$1" ;; *.zst) zstd -qdc <"$1" ;; *.gz) gzip -dc <"$1" ;; *) cat "$1" ;;
	esac
}
modcpio=
if [ -n "$base" ] && [ -n "${modules//[[:space:]]/}" ]; then
	key=$(printf '%s\n' "$base" "$modules" | cat - "$0" | sha256sum | cut -c1-16)
	modcpio=$cache/modules-${base##*/}-$key.cpio
	if [ ! -s "$modcpio" ]; then
		declare -A path=() seen=()
		while read -r f; do
			m=${f##*/} m=${m%%.ko*} path[${m//-/_}]=$f
		done < <(find "$base" -name '*.ko*' -type f)
		n=100
		mkdir -p "$work/mod/modules"
		add() { # module name: its dependencies first; unknown = built in or absent
			local m=${1//-/_} f d
			[ -z "${seen[$m]:-}" ] && [ -n "${path[$m]:-}" ] || return 0
			seen[$m]=1 f=$work/mod/$m.ko
			unpack "${path[$m]}" >"$f"
			for d in $(tr '\0' '\n' <"$f" | sed -n 's/^depends=//p; s/^softdep=pre: //p' | tr ',' ' '); do add "$d"; done
			n=$((n + 1))
			mv "$f" "$work/mod/modules/$n-$m.ko"
		}
		for m in $modules; do add "$m"; done
		pack "$work/mod" >"$modcpio.$$" && mv "$modcpio.$$" "$modcpio"
	fi
fi

# --- initramfs: busybox + init (+ modules, + payload) ----------------------
mkdir -p "$work/ram"/{bin,proc,sys,dev,run,newroot}
cp "$busybox" "$work/ram/bin/busybox"
ln -s busybox "$work/ram/bin/sh"
cat >"$work/ram/init" <<-'GUEST'
	#!/bin/sh
	export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin HOME=/root
	/bin/busybox --install -s /bin
	mount -t proc proc /proc; mount -t sysfs sys /sys
	mount -t devtmpfs dev /dev 2>/dev/null; mkdir -p /dev/pts /dev/shm
	ln -sf /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
	mount -t devpts devpts /dev/pts 2>/dev/null; mount -t tmpfs shm /dev/shm
	mount -t tmpfs -o mode=755 run /run
	for m in /modules/*.ko; do
	  [ -f "$m" ] && { insmod "$m" 2>/dev/null || echo "vm: insmod $m failed" >/dev/console; }
	done
	hostname vm; ip link set lo up 2>/dev/null
	. /vm.env
	disk() { for b in /sys/block/vd*; do
	  [ "$(cat $b/serial 2>/dev/null)" = "$1" ] && echo /dev/${b##*/}; done; }
	# Leave the initramfs: on a real mount as / pivot_root(2) and user namespaces
	# behave as on an ordinary host (both are refused in an initramfs or a chroot).
	top=/newroot
	if [ -n "$ROOT9P" ]; then
	  mkdir -p /run/ro /run/rw
	  mount -t tmpfs -o mode=755 rw /run/rw; mkdir /run/rw/u /run/rw/w
	  mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /run/ro &&
	  mount -t overlay -o lowerdir=/run/ro,upperdir=/run/rw/u,workdir=/run/rw/w root $top
	else
	  mount -t tmpfs -o mode=755 root $top && cp -a /bin $top/
	fi || { echo "vm: no root file system" >/dev/console; reboot -f; }
	for d in proc sys dev run tmp out mnt payload; do mkdir -p $top/$d; done
	case $HOW in
	initrd) mount --bind /payload $top/payload ;;
	disk) mount -t ext4 "$(disk payload)" $top/payload ;;
	9p) mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 payload $top/payload ;;
	esac
	mount -t tmpfs -o mode=1777 tmp $top/tmp
	for d in run out; do mount -t tmpfs -o mode=755 $d $top/$d; done
	for d in proc sys dev; do mount --move /$d $top/$d; done
	cp /vm.env /vm.sh $top/run/
	cd $top && mount --move . / && exec chroot . /bin/sh /run/vm.sh
	echo "vm: could not leave the initramfs" >/dev/console; reboot -f
GUEST
cat >"$work/ram/vm.sh" <<-'GUEST'
	. /run/vm.env
	disk() { for b in /sys/block/vd*; do
	  [ "$(cat $b/serial 2>/dev/null)" = "$1" ] && echo /dev/${b##*/}; done; }
	port() { for p in /sys/class/virtio-ports/*; do
	  [ "$(cat $p/name 2>/dev/null)" = "$1" ] && echo /dev/${p##*/}; done; }
	out=$(port vm.out); st=$(port vm.status); files=$(port vm.files)
	[ -n "$st" ] || echo "vm: no virtio console ports in this kernel" >/dev/console
	i=1; while [ $i -le $NDISKS ]; do eval "export VM_DISK$i=$(disk scratch$i)"; i=$((i+1)); done
	cd /payload && ./run.sh >$out 2>&1 </dev/null
	rc=$?
	[ -n "$files" ] && tar -C /out -cf - . >$files
	echo "exit $rc" >$st
	sync; reboot -f
GUEST
chmod 755 "$work/ram/init"
printf 'HOW=%s ROOT9P=%q NDISKS=%s\n' "$how" "$root" "${#disks[@]}" >"$work/ram/vm.env"

args=(-nodefaults -no-user-config -display none -no-reboot -m "$mem" -smp "$cpus")
case $accel in
# A /dev/kvm without the processor's help emulates instructions, and fails at those it doesn't know.
auto) if [ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; }; then accel=kvm; else accel=tcg; fi ;;
esac
case $accel in
kvm) args+=(-machine q35,accel=kvm -cpu host) ;;
tcg) args+=(-machine q35,accel=tcg -cpu max) ;;
*) die "accelerator $accel" ;;
esac

case $how in
initrd) cp -a "$payload" "$work/ram/payload" ;;
disk)
	size=$(($(du -sk "$payload" | cut -f1) * 5 / 4 + 16384))
	mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -d "$payload" "$work/payload.img" "${size}k" >/dev/null
	args+=(-drive "file=$work/payload.img,if=none,id=payload,format=raw,cache=unsafe"
		-device virtio-blk-pci,drive=payload,serial=payload)
	;;
9p) args+=(-virtfs "local,path=$payload,mount_tag=payload,security_model=none,readonly=on,multidevs=remap") ;;
*) die "payload transport $how" ;;
esac
[ -z "$root" ] ||
	args+=(-virtfs "local,path=$root,mount_tag=root,security_model=none,readonly=on,multidevs=remap")

pack "$work/ram" >"$work/initrd"
[ -z "$modcpio" ] || cat "$modcpio" >>"$work/initrd"

i=0
for size in ${disks[@]+"${disks[@]}"}; do
	i=$((i + 1))
	truncate -s "$size" "$work/scratch$i"
	args+=(-drive "file=$work/scratch$i,if=none,id=scratch$i,format=raw,cache=unsafe,discard=unmap"
		-device "virtio-blk-pci,drive=scratch$i,serial=scratch$i")
done

# --- run ------------------------------------------------------------------
: >"$work/console"
mkfifo "$work/stdout"
cat "$work/stdout" & catpid=$!
[ $verbose = 0 ] || { tail -f "$work/console" >&2 & tailpid=$!; }
rc=0
timeout -k 5 "$limit" "$qemu" "${args[@]}" \
	-kernel "$image" -initrd "$work/initrd" \
	-append "console=ttyS0 quiet loglevel=4 oops=panic panic=-1 reboot=t random.trust_cpu=on rdinit=/init $kargs" \
	-chardev "file,id=console,path=$work/console" -serial chardev:console \
	-device virtio-rng-pci -device virtio-serial-pci \
	-chardev "file,id=out,path=$work/stdout" -device virtserialport,chardev=out,name=vm.out \
	-chardev "file,id=files,path=$work/files" -device virtserialport,chardev=files,name=vm.files \
	-chardev "file,id=status,path=$work/status" -device virtserialport,chardev=status,name=vm.status \
	</dev/null 3<>"$work/stdout" || rc=$?	# fd 3: the reader ends even if qemu never opened it
wait "$catpid"
[ $verbose = 0 ] || kill "$tailpid" 2>/dev/null || :

if [ -n "$out" ] && [ -s "$work/files" ]; then
	mkdir -p "$out" && tar -C "$out" -xf "$work/files"
fi
if status=$(sed -n 's/^exit \([0-9][0-9]*\)$/\1/p' "$work/status" 2>/dev/null) && [ -n "$status" ]; then
	exit "$status"
fi
tail -n 40 "$work/console" >&2
[ $rc != 124 ] && [ $rc != 137 ] || { say "time limit of ${limit}s"; exit 124; }
say "the guest ended without a status (qemu exit $rc)"
exit 125
