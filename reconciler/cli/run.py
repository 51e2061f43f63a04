"""The verbs run, create and start: ad-hoc containers, in the background or shown here until they end.

In the foreground the container's log is followed from its beginning, and signals go on to it; ending this program ends
nothing. The exit code is the container's, 125 for a failure of ours, 126 and 127 as a shell's.
"""

import argparse
import fcntl
import os
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from reconciler.cli.asking import ask
from reconciler.cli.common import layout_of
from reconciler.cli.lifecycle import each
from reconciler.engine.control import Control
from reconciler.engine.layout import Layout
from reconciler.engine.logfollow import Log, Window, follow_all
from reconciler.engine.logs import Record
from reconciler.engine.named import find
from reconciler.engine.process import open_pidfd, read_exit, read_shim
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.report.tables import printable

_OURS: Final = 125  # as Docker: the failure was not the program's
_SHELL: Final = (126, 127)
_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_TEXTS: Final = (
    *("user", "workdir", "hostname", "restart", "stop_signal", "stop_timeout"),
    *("memory", "memory_swap", "cpus", "pids_limit", "shm_size", "cpuset_cpus", "oom_score_adj"),
    *("network", "log_driver"),
)
_LISTS: Final = (
    *("dns", "dns_search", "dns_option", "add_host", "group_add", "cap_add", "cap_drop", "security_opt"),
    *("add_device", "ulimit", "sysctl", "annotation", "log_opt"),
)
_INSISTED: Final = 3  # interrupts, after which we leave, as Docker's client does


def run(args: argparse.Namespace) -> int:
    """Make an ad-hoc container and start it; show its output and end as it ends, or print its id with -d."""
    with _Failing():
        if args.detach:
            print(_made(args, start=True)["id"])
            return 0
        answer = _made(args, start=False)
        name = str(answer["name"])
        try:
            with Watch(layout_of(args), name) as watch:
                ask(args, "start", {"name": name})
                code = watch.follow()
        except ReconcilerError:
            if args.rm:
                with suppress(ReconcilerError):
                    ask(args, "remove", {"name": name, "force": True})
            raise
        if args.rm and not watch.left:
            with suppress(NotFoundError):
                ask(args, "remove", {"name": name})
        return code


def create(args: argparse.Namespace) -> int:
    """Make an ad-hoc container and print its id."""
    with _Failing():
        print(_made(args, start=False)["id"])
        return 0


def start(args: argparse.Namespace) -> int:
    """Start containers; with -a show the output of one, and end as it ends."""
    if not args.attach:
        return each(args, "start", {})
    if len(args.names) != 1:
        raise UsageError("start: -a goes with one name only")
    with Watch(layout_of(args), args.names[0], fresh=True) as watch:
        ask(args, "start", {"name": args.names[0]})
        return watch.follow()


class _Failing:
    """Gives a failure of ours the exit code that Docker gives it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ReconcilerError) and error.exit_code not in _SHELL:
            error.exit_code = _OURS


def _made(args: argparse.Namespace, *, start: bool) -> dict[str, Any]:
    """Bring the image here and make the container; the image's digest is said where none was named."""
    bundle = os.path.realpath(args.bundle) if args.bundle else ""
    options = _options(args)
    found = ask(args, "fetch", {"image": args.image, "bundle": bundle})
    if found["image"] != args.image:
        print(f"image {found['image']}", file=sys.stderr)
    body = {
        "image": found["image"],
        "name": args.name,
        "rm": args.rm,
        "start": start,
        "publish_all": args.publish_all,
        "options": options,
    }
    answer = ask(args, "create", body)
    for port in answer["ports"] if args.publish_all or any(":" not in text for text in args.publish) else ():
        print(f"published {port}", file=sys.stderr)
    return answer


def _options(args: argparse.Namespace) -> dict[str, Any]:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    options: dict[str, Any] = {
        "command": command,
        "ports": args.publish,
        "environment": _environment(args),
        "volumes": [_absolute(text) for text in args.volume],
        "mounts": args.mount,
        "tmpfs": args.tmpfs,
        "labels": args.label,
        "init": args.init,
        "read_only": args.read_only,
        "privileged": args.privileged,
    }
    options |= {name: getattr(args, name) for name in (*_TEXTS, *_LISTS)}
    if args.entrypoint is not None:
        options["entrypoint"] = args.entrypoint
    return options


def _environment(args: argparse.Namespace) -> list[str]:
    """The variables in their order: files first, as with Docker; a name alone stands for what it is here, if it is."""
    lines: list[str] = []
    for file in args.env_file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--env-file {file}: {error}") from error
        lines += [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for line in [*lines, *args.env]:
        name, equals, _ = line.partition("=")
        if equals:
            found.append(line)
        elif name.strip() in os.environ:
            found.append(f"{name.strip()}={os.environ[name.strip()]}")
    return found


def _absolute(text: str) -> str:
    """A path of the device that is written relative to where we are."""
    source, colon, rest = text.partition(":")
    if not colon or not source.startswith((".", "~")):
        return text
    return f"{os.path.abspath(os.path.expanduser(source))}:{rest}"


class Watch:
    """Shows what a container writes, from when this is entered: its log is held, so that --rm waits for us.

    `fresh` leaves out what earlier runs wrote. `left` says that we went before the container's end.
    """

    def __init__(self, layout: Layout, name: str, *, fresh: bool = False) -> None:
        self._layout = layout
        self._fresh = fresh
        self._record = find(layout, name)
        self._stack = ExitStack()
        self._interrupts = 0
        self._log = -1
        self.left = False

    def __enter__(self) -> Self:
        try:
            self._log = os.open(
                self._layout.log(self._record.id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
            self._stack.callback(os.close, self._log)
            fcntl.flock(self._log, fcntl.LOCK_SH)
        except OSError as error:
            self._stack.close()
            raise NotFoundError(f"container {self._record.name}: its log is gone") from error
        for number in _FORWARDED:
            self._stack.callback(signal.signal, number, signal.signal(number, self._forward))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def follow(self) -> int:
        """Show everything until the container ends, and return its exit code, 128+n for signal n."""
        shim = read_shim(self._layout.shim_record(self._record.id))
        ended = open_pidfd(shim.shim) if shim is not None else None
        directory = Path(f"/proc/self/fd/{self._log}")
        since = shim.started_wall if shim is not None and self._fresh else None
        try:
            if ended is not None:
                self._stack.callback(os.close, ended)
            for _, record in follow_all([Log(directory, ended)], Window(since=since)):
                _show(record)
        except _LeftError:
            self.left = True
            print(
                f"left: the container goes on running; reconciler stop {self._record.name}", file=sys.stderr
            )
            return 130
        return self._code()

    def _code(self) -> int:
        layout, identity = self._layout, self._record.id
        exited = read_exit(layout.exit_record(identity)) or read_exit(layout.settled_exit(identity))
        if exited is not None:
            return exited.code if exited.code is not None else 128 + (exited.signal or 0)
        if not layout.identity(identity).exists():
            return 128 + signal.SIGKILL  # somebody removed it
        raise ReconcilerError(
            f"container {self._record.name}: nobody knows how it ended", hint="run: reconciler ps -a"
        )

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            self._interrupts += 1
            if self._interrupts >= _INSISTED:
                _leave()
        try:
            with Control.connect(self._layout.control_socket(self._record.id)) as control:
                control.kill(number)
        except ReconcilerError:
            pass  # it has just ended


class _LeftError(Exception):
    """Somebody insisted on leaving."""


def _leave() -> NoReturn:
    raise _LeftError


def _show(record: Record) -> None:
    """Pass on the very bytes that were written; on a terminal, without what could control it."""
    stream = sys.stdout if record.stream == "stdout" else sys.stderr
    if record.dropped:
        print(f"reconciler: {record.dropped} bytes of the log were lost here", file=sys.stderr)
        return
    data = record.data if record.partial else record.data + b"\n"
    if stream.isatty():
        data = printable(data.decode("utf-8", errors="replace")).encode()
    stream.buffer.write(data)
    stream.buffer.flush()
