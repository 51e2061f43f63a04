"""The verbs of `reconciler oci` that enter a container, create, run and exec: in a sealed copy of the interpreter."""

import argparse
import json
import os

from reconciler.linux import capability
from reconciler.shim import oci_cgroup, oci_create, oci_exec, oci_relay, oci_state
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.oci_state import OciError
from reconciler.shim.oci_verbs import destroy, start_program
from reconciler.shim.step import Step, StepError


def create(args: argparse.Namespace) -> int:
    oci_create.create(_order(args))
    return 0


def _order(args: argparse.Namespace) -> oci_create.Order:
    if args.no_pivot:
        raise OciError("--no-pivot: not supported: without pivot_root the host's root stays in reach")
    order = oci_create.Order(args.root, args.id, args.bundle)
    order.console, order.pid_file = args.console_socket, args.pid_file
    order.fresh_keyring = not args.no_new_keyring
    order.systemd = args.systemd_cgroup
    order.preserved = _preserved(args)
    order.activated = os.environ.get("LISTEN_FDS", "")
    return order


def _preserved(args: argparse.Namespace) -> int:
    """How many descriptors to hand on: those asked for, after those of socket activation (sd_listen_fds(3))."""
    activated = os.environ.get("LISTEN_FDS", "")
    count: int = args.preserve_fds + (int(activated) if activated.isdigit() else 0)
    if count < 0:
        raise OciError(f"--preserve-fds: {count}: expected at least 0")
    for fd in range(3, 3 + count):  # before any is opened here
        try:
            os.fstat(fd)
        except OSError:
            raise OciError(f"--preserve-fds: descriptor {fd} is not open") from None
    return count


def run(args: argparse.Namespace) -> int:
    order = _order(args)
    if args.detach:
        start_program(oci_create.create(order))
        return 0
    if args.console_socket:
        raise OciError("cannot use console socket if runc will not detach or allocate tty")
    foreground = oci_relay.Foreground(terminal=_wants_terminal(args.bundle or "."))
    order.console_fd = foreground.console
    container = oci_create.create(order)
    pidfd = os.pidfd_open(container.pid)
    try:
        start_program(container)
        return foreground.wait(container.pid, pidfd)
    finally:
        if not args.keep:
            destroy(container, force=True)


def _wants_terminal(bundle: str) -> bool:
    """Whether the bundle wants a terminal; what is wrong with it `create` says."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            return Section(json.load(file), "process").flag("terminal")
    except (OSError, ValueError, ConfigError, AttributeError):
        return False


def execute(args: argparse.Namespace) -> int:
    preserved = _preserved(args)
    container = oci_state.find(args.root, args.id)
    found = oci_cgroup.status(container)
    if found == "stopped":
        raise OciError("cannot exec in a stopped container")
    if found == "paused" and not args.ignore_paused:
        raise OciError("cannot exec in a paused container (use --ignore-paused to override)")
    if found == "creating":
        raise OciError("cannot exec in a container that is being created")
    config = container.config()
    kinds = {entry.text("type") for entry in Section(config, "linux").sections("namespaces")}
    held = -1 if "user" in kinds else capability.capget()[1]
    wanted = oci_exec.Wanted(_process(args, config), config, held)
    wanted.preserved = preserved
    if wanted.process.terminal and args.detach:
        if not args.console_socket:
            raise OciError("cannot allocate tty if runc will detach without setting console socket")
        wanted.console = oci_create.connect_console(args.console_socket)
    elif args.console_socket:
        raise OciError("cannot use console socket if runc will not detach or allocate tty")
    if args.detach:
        pid, _ = oci_exec.spawn(container, wanted)
        if args.pid_file:
            oci_create.write_pid(args.pid_file, pid)
        return 0
    foreground = oci_relay.Foreground(terminal=wanted.process.terminal)
    wanted.console = foreground.console
    pid, pidfd = oci_exec.spawn(container, wanted)
    if args.pid_file:
        oci_create.write_pid(args.pid_file, pid)
    return foreground.wait(pid, pidfd)


def _process(args: argparse.Namespace, config: dict[str, object]) -> dict[str, object]:
    """Give the `process` to run: that of a file as it is, or the container's own with what the options change."""
    if args.process:
        if args.command:
            raise OciError("exec: a command and --process exclude each other")
        with Step("process", args.process), open(args.process, "rb") as file:
            try:
                given = json.load(file)
            except ValueError as error:
                raise StepError("process", args.process, 0, f"not JSON: {error}") from error
        if not isinstance(given, dict):
            raise StepError("process", args.process, 0, "not an object")
        return given
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise OciError("exec: expected a command, or --process")
    base = Section(config, "process")
    wanted: dict[str, object] = dict(base.values)
    for key in ("consoleSize", "scheduler", "ioPriority", "oomScoreAdj"):
        wanted.pop(key, None)
    wanted |= {"args": command, "env": [*base.strings("env"), *args.env], "terminal": args.tty}
    if args.cwd:
        wanted["cwd"] = args.cwd
    person = dict(base.section("user").values)
    if args.user:
        uid, colon, gid = args.user.partition(":")
        if not uid.isdigit() or (colon and not gid.isdigit()):
            raise OciError(f"exec: --user: {args.user!r}: expected UID[:GID], as numbers")
        person |= {"uid": int(uid), **({"gid": int(gid)} if colon else {})}
    if args.additional_gids:
        groups = Section({"user": person}, "user").numbers("additionalGids")
        person["additionalGids"] = [*groups, *args.additional_gids]
    wanted["user"] = person
    if args.cap:
        sets = base.section("capabilities")
        kinds = ("bounding", "effective", "permitted")
        wanted["capabilities"] = {**sets.values, **{key: [*sets.strings(key), *args.cap] for key in kinds}}
    if args.no_new_privs:
        wanted["noNewPrivileges"] = True
    if args.apparmor:
        wanted["apparmorProfile"] = args.apparmor
    if args.process_label:
        wanted["selinuxLabel"] = args.process_label
    return wanted
