"""`exec` of the OCI runtime command line: one more program in a container, which belongs to the caller.

As shim.attach does it for the engine's containers, with two differences: the process is the caller's and no shim's, so
that it has no death signal and keeps the caller's descriptors 0 to 2; and the container may have namespaces of any
kind, of users and of time too.
"""

import os
import signal

from reconciler.linux import namespace, process
from reconciler.shim import (
    attach,
    child,
    device,
    mounts,
    oci_cgroup,
    oci_child,
    oci_config,
    oci_filter,
    oci_log,
    privilege,
    start,
    user,
)
from reconciler.shim.fields import Section
from reconciler.shim.oci_state import Container
from reconciler.shim.program import Process, prepare_process
from reconciler.shim.step import Step, problem

_KINDS = (
    ("user", namespace.CLONE_NEWUSER),
    ("mnt", namespace.CLONE_NEWNS),
    ("ipc", namespace.CLONE_NEWIPC),
    ("uts", namespace.CLONE_NEWUTS),
    ("net", namespace.CLONE_NEWNET),
    ("cgroup", namespace.CLONE_NEWCGROUP),
    ("time", namespace.CLONE_NEWTIME),
)
_BEYOND = ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority", "execCPUAffinity")


class Wanted:
    """The program to run. `console` is the descriptor that takes a terminal's master, -1 without one."""

    __slots__ = ("confinement", "console", "fresh_keyring", "preserved", "process")

    def __init__(self, asked: dict[str, object], config: dict[str, object], held: int) -> None:
        """Read `asked`, the `process` of a config.json, for a container of `config`; raise ConfigError.

        `held` are the capabilities that can be given.
        """
        given = Section({"process": asked}, "process")
        self.confinement = oci_config.Confinement(given, Section(config, "linux"))
        reduced = {key: value for key, value in asked.items() if key not in _BEYOND}
        reduced["capabilities"], dropped = oci_config.grantable(given, held)
        if dropped:
            oci_log.warn(f"capabilities that can't be given are left out: {', '.join(dropped)}")
        self.process: Process = prepare_process({"process": reduced, "linux": config.get("linux")})
        oci_filter.prepare(self.process, config)
        self.console = -1
        self.preserved = 0
        self.fresh_keyring = True


def spawn(container: Container, wanted: Wanted) -> tuple[int, int]:
    """Start the program in the container; give (pid, pidfd) once it runs; raise StepError where it can't."""
    group = oci_cgroup.of(container)
    init = os.pidfd_open(container.pid)
    label = oci_child.label_place(wanted.confinement)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        adjust = attach.oom_score_adj(container.pid, wanted.process)
        joined = _foreign(container.pid)
        pid, pidfd = attach.clone(init, _v2(group, container.pid))
        if pid == 0:
            _run(wanted, init, joined, group, adjust, label, writer)
    finally:
        os.close(writer)
        os.close(init)
    with open(reader, "rb") as file:
        line = file.read()
    if line:
        os.waitpid(pid, 0)
        os.close(pidfd)
        raise problem(line)
    return pid, pidfd


def _foreign(pid: int) -> int:
    """Give the kinds of its namespaces that are not this one's own; to join the own user namespace is refused."""
    flags = 0
    for name, flag in _KINDS:
        try:
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")):
                flags |= flag
        except FileNotFoundError:
            continue  # a kernel without this kind
    return flags


def _v2(group: oci_cgroup.Cgroup, init: int) -> str:
    """Give the cgroup to be born in: init's own, where the container has made others below its own and handed them
    controllers, for then none may be in that (cgroup-v2.rst, No Internal Process Constraint).
    """
    if not group.v2 or not oci_cgroup.read(f"{group.v2}/cgroup.subtree_control").strip():
        return group.v2
    for line in oci_cgroup.read(f"/proc/{init}/cgroup").splitlines():
        if line.startswith("0::"):
            return oci_cgroup.Hierarchies().v2 + line[3:]
    return group.v2


def _run(
    wanted: Wanted,
    init: int,
    joined: int,
    group: oci_cgroup.Cgroup,
    adjust: str,
    label: int,
    error: int,
) -> None:
    code = 125
    try:
        file = _become(wanted, init, joined, group, adjust, label, error)
        start.reset_signals()
        start.execute(file, wanted.process, error, wanted.preserved)
    except BaseException as cause:  # noqa: BLE001 - the error pipe is the only way out of here
        code = attach.report(cause, error)
    os._exit(code)


def _become(
    wanted: Wanted, init: int, joined: int, group: oci_cgroup.Cgroup, adjust: str, label: int, error: int
) -> bytes:
    """Do everything up to the exec; give the program's file."""
    asked, confinement = wanted.process, wanted.confinement
    late = (
        error,
        *oci_filter.kept(asked),
        *range(3, 3 + wanted.preserved),
        *((label,) if label >= 0 else ()),
    )
    with Step("isolate"):
        process.close_except((0, 1, 2, init, *late, *((wanted.console,) if wanted.console >= 0 else ())))
        process.set_dumpable(False)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0)
        os.setsid()
    with Step("oom_score_adj", adjust):
        # Before the container's /proc can be seen: what is there may be anything (CVE-2025-52881)
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, adjust.encode())
        os.close(fd)
    _run_on(confinement.first_cpus)
    child.join_cgroups(group.v1_directories())
    _run_on(confinement.final_cpus)
    with Step("namespace"):
        if joined:
            namespace.setns(init, joined)
        os.close(init)
    if joined & namespace.CLONE_NEWUSER:
        oci_child.become_root()
    if label >= 0:
        with Step("label", "/proc"):
            oci_child.open_label(mounts.create("proc", (), 0), confinement, label)
    with Step("root", "/"):
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    who = user.resolve(root, asked)
    asked.environment.setdefault(b"HOME", who.home)
    if asked.terminal:
        master, slave = attach.terminal(asked.console_size)
        os.fchown(slave, who.uid, -1)
        device.send_master(wanted.console, master)
        device.take_terminal(slave)
    else:
        start.set_stdio((0, 1, 2), 0 if joined & namespace.CLONE_NEWUSER else who.uid)
    with Step("descriptors"):
        process.close_except((0, 1, 2, *late))
    oci_child.tune(confinement)
    privilege.set_limits(asked)
    if wanted.fresh_keyring:
        privilege.fresh_keyring()
    privilege.drop(asked, who)
    os.umask(asked.umask)
    start.change_directory(asked.cwd)
    file = start.find_program(asked)
    if label >= 0:
        oci_child.write_label(label, confinement)
    return file


def _run_on(cpus: tuple[int, ...]) -> None:
    if cpus:
        with Step("execCPUAffinity", ",".join(map(str, cpus))):
            os.sched_setaffinity(0, cpus)
