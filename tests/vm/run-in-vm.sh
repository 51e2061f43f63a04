#!/usr/bin/env bash
# Run a command as root in a throw-away Debian 12 guest whose only cgroup hierarchy is version 2.
#
#   tests/vm/run-in-vm.sh [-t SECONDS] [-o DIR] [-i fast|systemd] [--] COMMAND [ARGUMENT...]
#
#   -t  give up after so many seconds (default 900)          exit status 124
#   -o  what COMMAND leaves in /out of the guest comes back into DIR
#   -i  PID 1 is a small shell script (default, seconds faster), or systemd, with COMMAND in a Delegate=yes service
#
# The clone that this script is in is found in the guest at the same path as here, .venv included, writable and
# forgotten afterwards: interpreter, scripts and editable install work unchanged, because the guest has the Debian
# release whose python the .venv was made from. Output and exit status of COMMAND come out here; 125 means that the
# guest ended without a result (its console is shown).
#
# Environment: VM_MEMORY (MiB, 2048), VM_CPUS (all, at most 4), VM_PASS ("A B": variables to hand on), VM_CACHE
# (default $XDG_CACHE_HOME/reconciler-vm or ~/.cache/reconciler-vm: kernel and root image, about 500 MB, made by the
# first run in a minute), VM_CONSOLE=1 (show the kernel's messages). Inside, IN_VM=1 is set.
#
# Needs root, and with apt-get install --no-install-recommends:
#   qemu-system-x86 mmdebstrap squashfs-tools e2fsprogs busybox-static cpio kmod
# The guest has no network. Where the hardware helps (KVM) it is used; without, Python runs 5 to 8 times slower than
# on the host, and fork, exec and namespaces 25 to 40 times.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

suite=bookworm
packages=systemd,systemd-sysv,dbus,libpam-systemd,udev,python3,python3-venv,nftables,libnftables1,iproute2,conntrack
packages+=,git,ca-certificates,busybox-static,procps,kmod,util-linux,e2fsprogs,iputils-ping,strace,curl,jq,crun,runc

clone=$(cd "$(dirname "$0")/../.." && pwd)
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reconciler-vm}
timeout=900 out_dir='' init=fast

say() { echo "run-in-vm: $*" >&2; }
die() { say "$*"; exit 125; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 64; }

while getopts t:o:i:h option; do
  case $option in
    t) timeout=$OPTARG ;;
    o) out_dir=$OPTARG ;;
    i) init=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
[ "$init" = fast ] || [ "$init" = systemd ] || usage

[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "knows only amd64 hosts with dpkg"
[ "$(id -u)" = 0 ] || die "needs root, to make the guest's root file system"
for program in qemu-system-x86_64 mmdebstrap mksquashfs mke2fs cpio depmod modprobe flock; do
  command -v "$program" >/dev/null || die "$program is missing; install the packages that the head of $0 names"
done
[ -x /bin/busybox ] || die "busybox-static is missing"

# The mirrors that this machine's apt uses, so that a local one is used here too.
mirror_of() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk -v r="$1" '$2 == r && !f {print $1; f = 1}'; }

# --- the parts that are kept: kernel with its initrd, and root image ------------------------------------------------

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

kernel=$cache/kernel-$suite
if [ ! -e "$kernel/complete" ]; then
  say "fetching a kernel"
  started=$SECONDS
  rm -rf "$kernel"
  mkdir -p "$kernel"/{package,initrd/{bin,dev,proc,sys,new,modules},apt/{lists/partial,archives/partial}}
  mirror=$(mirror_of "$suite") security=$(mirror_of "$suite-security")
  [ -n "$mirror" ] || die "apt on this machine knows no mirror of Debian $suite"
  # apt's state of its own: the machine's lists and its architecture are left alone.
  touch "$kernel/apt/status"
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  { echo "deb [signed-by=$keyring] $mirror $suite main"
    [ -z "$security" ] || echo "deb [signed-by=$keyring] $security $suite-security main"; } >"$kernel/apt/sources.list"
  apt=(-o "Dir::State::Lists=$kernel/apt/lists" -o "Dir::State::status=$kernel/apt/status" -o "Dir::Cache=$kernel/apt"
       -o "Dir::Cache::archives=$kernel/apt/archives" -o "Dir::Etc::sourcelist=$kernel/apt/sources.list"
       -o Dir::Etc::sourceparts=- -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" -qq update
  image=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | awk '/Depends:/ && !f {print $2; f = 1}')
  (cd "$kernel" && apt-get "${apt[@]}" -qq download "$image")
  dpkg-deb -x "$kernel"/linux-image-*.deb "$kernel/package"
  rm -rf "$kernel"/linux-image-*.deb "$kernel/apt"
  release=$(basename "$kernel"/package/lib/modules/*)
  cp "$kernel"/package/boot/vmlinuz-* "$kernel/vmlinuz"
  mkdir -p "$kernel/package/usr"
  depmod -b "$kernel/package" "$release"
  cp /bin/busybox "$kernel/initrd/bin/busybox"
  for module in virtio_pci virtio_blk virtio_console squashfs ext4; do
    modprobe -d "$kernel/package" -S "$release" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" {print $2}' || true
  done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$kernel/initrd/modules/"
    basename "$file" >>"$kernel/initrd/modules/order"
  done
  cat >"$kernel/initrd/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
while read -r m; do $b insmod "/modules/$m" 2>/dev/null; done </modules/order
n=0; while [ ! -b /dev/vdb ] && [ $n -lt 500 ]; do $b usleep 20000; n=$((n + 1)); done
$b mount -t ext4 /dev/vda /new && $b mount -t squashfs -o ro /dev/vdb /new/src || { echo "no root disk"; echo o >/proc/sysrq-trigger; $b sleep 9; }
$b mount -t tmpfs -o mode=755 run /new/run
$b cp -a /guest /new/run/guest
for p in /sys/class/virtio-ports/*; do read -r name <"$p/name"; echo "port_$name=/dev/${p##*/}"; done >/new/run/guest/ports
for d in dev proc sys; do $b mount --move /$d /new/$d; done
exec $b switch_root /new "$($b cat /guest/pid1)"
INIT
  chmod +x "$kernel/initrd/init"
  (cd "$kernel/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$kernel/initrd.gz"
  mv "$kernel/package/lib/modules" "$kernel/modules"
  rm -rf "$kernel/package" "$kernel/initrd"
  touch "$kernel/complete"
  say "kernel $release ready in $((SECONDS - started)) s"
fi

root=$cache/root-$suite-$(echo "$packages" | sha256sum | cut -c1-8).ext4
if [ ! -e "$root" ]; then
  say "making a root file system"
  started=$SECONDS
  tree=$cache/root-being-made
  rm -rf "$tree"
  mirror=$(mirror_of "$suite") security=$(mirror_of "$suite-security")
  mmdebstrap --quiet --mode=root --variant=apt --include="$packages" --aptopt='Acquire::Languages "none"' \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$tree" "$mirror" ${security:+"deb $security $suite-security main"} >&2
  mkdir -p "$tree"/{src,out,lib/modules,etc/systemd/system}
  cp -a "$kernel/modules/." "$tree/lib/modules/"
  echo vm >"$tree/etc/hostname"
  echo "127.0.0.1 localhost vm" >"$tree/etc/hosts"
  : >"$tree/etc/fstab"
  echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
  rm -rf "$tree"/var/{cache/apt/*.bin,lib/apt/lists/*,cache/apt/archives/*.deb}
  printf '%s\n' '[Unit]' 'Requires=dbus.socket' 'After=basic.target dbus.socket' '[Service]' 'Type=exec' \
    'ExecStart=/run/guest/run' 'Delegate=yes' 'TasksMax=infinity' 'LimitNOFILE=1048576' >"$tree/etc/systemd/system/guest.service"
  printf '%s\n' '[Unit]' 'Requires=basic.target guest.service' 'After=basic.target' 'AllowIsolate=yes' \
    >"$tree/etc/systemd/system/guest.target"
  ln -sf guest.target "$tree/etc/systemd/system/default.target"
  for unit in systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
    dpkg-db-backup.timer fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-networkd.service \
    systemd-random-seed.service systemd-update-utmp.service systemd-hwdb-update.service systemd-journal-flush.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
  done
  chroot "$tree" python3 -m compileall -q /usr/lib/python3.11 /usr/lib/python3 >/dev/null 2>&1 || true # only speed
  truncate -s $(($(du -sm "$tree" | cut -f1) + 4096))M "$root.partial"
  mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -d "$tree" "$root.partial"
  rm -rf "$tree" "$cache"/root-"$suite"-*.ext4
  mv "$root.partial" "$root"
  say "root file system ready in $((SECONDS - started)) s ($(du -m "$root" | cut -f1) MB)"
fi
flock -u 9

# --- one run --------------------------------------------------------------------------------------------------------

work=$(mktemp -d /var/tmp/run-in-vm.XXXXXX)
trap 'rm -rf "$work"' EXIT
guest=$work/extra/guest
mkdir -p "$guest"

case $init in fast) echo /run/guest/init ;; systemd) echo /lib/systemd/systemd ;; esac >"$guest/pid1"
printf '%s' "$clone" >"$guest/clone"
{
  echo 'export HOME=/root LANG=C.UTF-8 IN_VM=1 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  for name in ${VM_PASS:-}; do [ -z "${!name+set}" ] || printf 'export %s=%q\n' "$name" "${!name}"; done
  printf 'exec'
  printf ' %q' "$@"
  echo
} >"$guest/command"

cat >"$guest/run" <<'RUN'
#!/bin/bash
. /run/guest/ports
clone=$(cat /run/guest/clone)
mkdir -p /run/clone "$clone"
mount -t tmpfs -o mode=755 clone /run/clone && mkdir /run/clone/{upper,work}
modprobe overlay
mount -t overlay -o lowerdir=/src,upperdir=/run/clone/upper,workdir=/run/clone/work overlay "$clone"
cd "$clone"
echo started >"$port_rc"
bash /run/guest/command </dev/null >"$port_out" 2>&1
rc=$?
[ -z "$(ls -A /out)" ] || tar -C /out -cf "$port_art" .
echo "rc $rc" >"$port_rc"
sync
echo o >/proc/sysrq-trigger
sleep 60
RUN

cat >"$guest/init" <<'PID1'
#!/bin/bash
# PID 1 of the guest: mounts what systemd would, starts the command, and reaps.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=1777 tmp /tmp
mount --make-rshared /
ln -sf /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sf "fd/${n%:*}" "/dev/${n#*:}"; done
[ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
ip link set lo up
hostname vm
for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done
/run/guest/run
PID1
chmod +x "$guest/run" "$guest/init"
(cd "$work/extra" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/extra.gz"
cat "$kernel/initrd.gz" "$work/extra.gz" >"$work/initrd" # the kernel unpacks archives that follow each other

# Tools that only look at the sources stay behind: they are most of the bytes.
site=.venv/lib/python3.11/site-packages
mksquashfs "$clone" "$work/src.sqfs" -quiet -no-progress -all-root -noI -noD -noF -no-xattrs -wildcards -e \
  .git .run .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache '.venv/bin/ruff' \
  "$site/mypy" "$site/mypyc" "$site/*__mypyc*" "$site/ruff" "$site/grimp" "$site/pip" >/dev/null

accelerator=tcg,thread=multi,tb-size=512 cpu=Haswell-noTSX
# /dev/kvm alone proves nothing: a software KVM cannot run a stock kernel.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accelerator=kvm cpu=host; fi
cpus=$(nproc)
append="console=ttyS0 quiet panic=-1 no_timer_check mitigations=off nokaslr audit=0 apparmor=0 random.trust_cpu=on"
append+=" net.ifnames=0 rdinit=/init systemd.unified_cgroup_hierarchy=1 systemd.show_status=0"

mkfifo "$work/out" # a FIFO, because the end of a standard input would unplug the port
cat "$work/out" &
reader=$!
status=0
TMPDIR=$work timeout --foreground -k 5 "$timeout" qemu-system-x86_64 -M q35 -accel "$accelerator" -cpu "$cpu" \
  -smp "${VM_CPUS:-$((cpus > 4 ? 4 : cpus))}" -m "${VM_MEMORY:-2048}" \
  -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$kernel/vmlinuz" -initrd "$work/initrd" -append "$append" \
  -drive "file.filename=$root,file.locking=off,format=raw,if=none,id=root,snapshot=on,cache=unsafe" \
  -device virtio-blk-pci,drive=root \
  -drive "file=$work/src.sqfs,format=raw,if=none,id=src,readonly=on,cache=unsafe" -device virtio-blk-pci,drive=src \
  -device virtio-serial-pci,max_ports=4 \
  -chardev "file,id=out,path=$work/out" -device virtserialport,chardev=out,name=out \
  -chardev "file,id=rc,path=$work/rc" -device virtserialport,chardev=rc,name=rc \
  -chardev "file,id=art,path=$work/art.tar" -device virtserialport,chardev=art,name=art \
  -serial "file:$work/console" </dev/null 2>"$work/errors" || status=$?

# The reader sees the end when qemu closes the FIFO; a qemu that never opened it would leave it waiting.
if [ -e "$work/rc" ]; then wait "$reader" || true; else kill "$reader" 2>/dev/null || true; fi
[ -z "${VM_CONSOLE:-}" ] || cat "$work/console" >&2
if [ -n "$out_dir" ] && [ -s "$work/art.tar" ]; then
  mkdir -p "$out_dir"
  tar -C "$out_dir" --no-same-owner -xf "$work/art.tar"
fi
if result=$(grep -s '^rc ' "$work/rc"); then exit "${result#rc }"; fi
if [ "$status" = 124 ]; then say "no end after $timeout s"; exit 124; fi
say "no result from the guest (qemu ended with $status); its console:"
tail -n 40 "$work/console" >&2 || true
cat "$work/errors" >&2
exit 125
