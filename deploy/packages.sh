#!/bin/sh
# Install the Debian packages that `run`, `test` or `bench` needs, where they are missing. Quick when nothing is.
#
#   deploy/packages.sh run|test|bench
#
# No service is started by it: a policy-rc.d that says no stands in for the duration, where there is none. Without root,
# or without apt, `test` says what is missing and goes on; `run` fails.
set -eu
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

run="python3 python3-venv libnftables1 git ca-certificates"
test="$run gcc libc6-dev qemu-user-static binutils curl jq strace procps util-linux iproute2 nftables conntrack busybox-static
	adjtimex mmdebstrap debian-archive-keyring skopeo umoci docker-registry redis-tools crun runc prometheus systemd bash zsh fish
	squashfs-tools e2fsprogs xfsprogs cpio kmod podman conmon containerd netavark iptables"
architecture=$(dpkg --print-architecture 2>/dev/null) || architecture=unknown
case $architecture in
amd64) test="$test gcc-aarch64-linux-gnu qemu-system-x86" ;;
arm64) test="$test gcc-x86-64-linux-gnu" ;;
esac

case ${1-} in
run) wanted=$run ;;
test) wanted=$test ;;
bench) wanted="$test iperf3 wrk docker.io" ;;
*)
	echo "usage: $0 run|test|bench" >&2
	exit 64
	;;
esac

give_up() {
	echo "packages: $1: $missing" >&2
	[ "$wanted" != "$run" ] || exit 1
	echo "packages: going on without; the end of the run lists the tests that could not run" >&2
	exit 0
}

missing=
if ! command -v dpkg-query >/dev/null; then
	missing=$(echo $wanted) # one line
	give_up "no Debian packages on this machine; install what corresponds to"
fi
for package in $wanted; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
missing=${missing# }
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || give_up "not root, so these stay missing"

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	trap 'exit 1' INT TERM
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
echo "packages: installing $missing"
apt-get -qq update
# shellcheck disable=SC2086 # the list is meant to be split
apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install $missing >/dev/null
