#!/bin/bash
# Makes a machine ready for run.sh, once: packages only, as programs and tests come along built. Run as root in the guest.
set -euo pipefail
. /etc/os-release
packages="e2fsprogs xfsprogs btrfs-progs attr acl uidmap util-linux strace"
case "$ID" in
debian | ubuntu)
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# Ubuntu keeps less common file systems, aufs among them, in a package of its own.
	[ "$ID" != ubuntu ] || packages="$packages linux-modules-extra-$(uname -r)"
	# shellcheck disable=SC2086 # words on purpose
	apt-get install -y -qq --no-install-recommends $packages
	;;
*)
	echo "provision.sh knows Debian and Ubuntu, not $ID" >&2
	exit 1
	;;
esac
# Tests run in user namespaces that ordinary users make.
if [ -e /proc/sys/kernel/unprivileged_userns_clone ]; then
	echo kernel.unprivileged_userns_clone=1 >/etc/sysctl.d/60-user-namespaces.conf
	sysctl -q -p /etc/sysctl.d/60-user-namespaces.conf
fi
for driver in ${EXPECT_DRIVERS:-}; do
	case $driver in
	overlay | aufs | btrfs) modprobe "$driver" || { echo "this kernel has no $driver" >&2; exit 1; } ;;
	esac
done
