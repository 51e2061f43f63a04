#!/bin/sh
# Say what keeps containers from running here, before anything is installed: one line per gap, with the remedy, as
# `reconciler doctor` says it. Exits 1 when there is a gap. It needs no Python and leaves nothing behind.
set -u
export PATH="$PATH:/usr/sbin:/sbin"
gaps=0

gap() {
	gaps=$((gaps + 1))
	printf '%s: %s; %s\n' "$1" "$2" "$3"
}

if [ "$(uname -s)" != Linux ]; then
	gap kernel "this is $(uname -s)" "containers need Linux 5.15 or newer"
	exit 1
fi

release=$(uname -r)
major=${release%%.*} rest=${release#*.}
minor=${rest%%[!0-9]*}
if [ "$major" -lt 5 ] || { [ "$major" -eq 5 ] && [ "$minor" -lt 15 ]; }; then
	gap kernel "Linux $release" "boot Linux 5.15 or newer"
fi

grep -q '[[:space:]]overlay$' /proc/filesystems || [ -n "$(find "/lib/modules/$release" -name 'overlay.ko*' 2>/dev/null)" ] ||
	gap overlay "this kernel has no overlay file system" "boot a kernel with CONFIG_OVERLAY_FS"

if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ ! -d /sys/fs/cgroup/pids ]; then
	gap cgroup "no cgroup hierarchy is mounted at /sys/fs/cgroup" "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
fi

if [ "$(id -u)" != 0 ]; then
	gap root "running as uid $(id -u)" "run it as root, for example with sudo"
	exit 1
fi

# Root in a container may lack what root has: CapEff is a hexadecimal mask with bit 21 = SYS_ADMIN, 12 = NET_ADMIN.
effective=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
elsewhere="run it on the host, or in a container with --privileged"
[ $((0x$effective >> 21 & 1)) = 1 ] || gap capabilities "CAP_SYS_ADMIN is missing" "$elsewhere"
[ $((0x$effective >> 12 & 1)) = 1 ] || gap capabilities "CAP_NET_ADMIN is missing" "$elsewhere"
[ "$gaps" = 0 ] || exit 1

# Allowed on paper: now try it. Each attempt takes what it made away with it.
attempt() {
	what=$1
	shift
	said=$(timeout 2 "$@" 2>&1) || gap "$what" "$(printf '%s' "${said:-no answer within 2 s}" | tr '\n' ' ')" "$elsewhere"
}

attempt namespaces unshare --fork --pid --mount --uts --ipc --net --cgroup true
attempt overlay unshare --mount sh -ec '
	mount -t tmpfs preflight /tmp
	mkdir /tmp/lower /tmp/upper /tmp/work /tmp/merged
	mount -t overlay preflight -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/merged'
parent=/sys/fs/cgroup
grep -qw pids /sys/fs/cgroup/cgroup.controllers 2>/dev/null || parent=/sys/fs/cgroup/pids
attempt cgroup sh -ec 'mkdir "$1" && rmdir "$1"' sh "$parent/preflight-$$"

[ "$gaps" = 0 ]
