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

# Root in a container may lack what root has. CapEff is a hexadecimal mask of these bits; the names are doctor's.
effective=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
elsewhere="run it on the host, or in a container with --privileged"
missing=
for capability in CHOWN=0 DAC_OVERRIDE=1 FOWNER=3 FSETID=4 KILL=5 MKNOD=27 NET_ADMIN=12 SETGID=6 SETPCAP=8 SETUID=7 \
	SYS_ADMIN=21 SYS_CHROOT=18; do
	[ $((0x$effective >> ${capability#*=} & 1)) = 1 ] || missing="$missing${missing:+, }${capability%=*}"
done
[ -z "$missing" ] || gap capabilities "missing: $missing" "$elsewhere"

forward=/proc/sys/net/ipv4/ip_forward
[ "$(cat "$forward")" = 1 ] || [ -w "$forward" ] ||
	gap ip_forward "off, and $forward can't be written" "set net.ipv4.ip_forward=1 from outside"
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
# These two programs may still have to be installed; `doctor` tries the same again afterwards.
! command -v ip >/dev/null || attempt network unshare --net sh -ec '
	ip link add preflight type bridge
	ip link add preflight0 master preflight type veth peer name preflight1'
! command -v nft >/dev/null || attempt network unshare --net nft add table inet preflight

[ "$gaps" = 0 ]
