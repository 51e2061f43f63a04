"""Being attached to a container: its output is shown as it comes, what is typed goes in, and its end is ours.

Output comes from the container's log, so that whoever is slow holds up neither the container nor its log, nor the
others that are attached, and the agent is not needed. Input goes where the shim says: to the container's own terminal,
whose bytes come out as they are because somebody has asked for one, or into a pipe. Elsewhere what could control the
operator's terminal is shown as visible escapes.
"""

import argparse
import codecs
import fcntl
import json
import os
import select
import signal
import struct
import sys
import termios
import threading
import tty
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self

from reconciler.cli.common import layout_of
from reconciler.cli.containers import demand_moving
from reconciler.cli.detaching import DEFAULT, Keys, parse_keys
from reconciler.cli.terminal import window_size
from reconciler.engine.control import Control
from reconciler.engine.layout import Layout
from reconciler.engine.logfollow import Log, Window, follow_all
from reconciler.engine.logs import Record
from reconciler.engine.named import find
from reconciler.engine.process import alive, open_pidfd, read_exit, read_shim
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, UsageError
from reconciler.report.tables import printable
from reconciler.state.desired import called

_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_INSISTED: Final = 3  # interrupts, after which we leave, as Docker's client does
_CHUNK: Final = 65536


def attach(args: argparse.Namespace) -> int:
    """Show what a running container writes from now on, and pass on what is typed, until it ends or somebody leaves."""
    layout = layout_of(args)
    found = find(layout, args.name)
    shim = read_shim(layout.shim_record(found.id))
    if shim is None or shim.started_boot is None or read_exit(layout.exit_record(found.id)) is not None:
        raise BlockedError(
            f"container {called(found.app, found.name)}: does not run",
            hint=f"run: reconciler start -a {called(found.app, found.name)}",
        )
    demand_moving(layout, found)
    with Attached(layout, args.name, manner(args), only_new=True, stdin=not args.no_stdin) as attached:
        return attached.follow()


@dataclass(frozen=True, slots=True)
class Manner:
    """How somebody is attached: the `keys` that leave a terminal, and whether signals go on to the container."""

    keys: bytes
    proxy: bool


def manner(args: argparse.Namespace) -> Manner:
    """What `attach`, `run` and `start` say of it; UsageError for keys that are none."""
    return Manner(parse_keys(args.detach_keys or DEFAULT), args.sig_proxy == "true")


class Attached:
    """Attached to a container from when this is entered: its log is held, so that --rm waits for us.

    `fresh` leaves out what earlier runs wrote, `only_new` what was written before. With `stdin` what is typed goes in.
    `left` says that we went before the container's end.
    """

    def __init__(
        self,
        layout: Layout,
        name: str,
        manner: Manner,
        *,
        fresh: bool = False,
        only_new: bool = False,
        stdin: bool = False,
    ) -> None:
        self._layout = layout
        self._fresh = fresh
        self._only_new = only_new
        self._record = find(layout, name)
        self._tty, accepts = _streams(layout, self._record.id)
        self._stdin = stdin and accepts
        self._keys = Keys(manner.keys) if self._tty else None
        self._proxy = manner.proxy
        self._stack = ExitStack()
        self._modes: list[object] | None = None
        self._control: Control | None = None
        self._inside = -1  # the container's terminal, or its standard input
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")
        }
        self._interrupts = 0
        self._detached = False
        self._log = -1
        self.left = False
        if self._tty and self._stdin and not os.isatty(0):
            raise UsageError(
                f"container {self._called}: has a terminal, and standard input is none",
                hint="use attach --no-stdin",
            )

    @property
    def _called(self) -> str:
        return called(self._record.app, self._record.name)

    def __enter__(self) -> Self:
        try:
            self._log = os.open(
                self._layout.log(self._record.id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
            self._stack.callback(os.close, self._log)
            fcntl.flock(self._log, fcntl.LOCK_SH)
        except OSError as error:
            self._stack.close()
            raise NotFoundError(f"container {self._called}: its log is gone") from error
        try:
            if self._lives():
                self._join()
        except BaseException:
            self._stack.close()
            raise
        for number in _FORWARDED:
            self._stack.callback(signal.signal, number, signal.signal(number, self._forward))
        self._stack.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, self._changed))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _lives(self) -> bool:
        """Whether a shim is there. One that has ended gets another when it is started again."""
        shim = read_shim(self._layout.shim_record(self._record.id))
        return (
            shim is not None
            and read_exit(self._layout.exit_record(self._record.id)) is None
            and alive(shim.shim)
        )

    def _join(self) -> None:
        """Have the container's terminal, or the end of its standard input, where it has one of them."""
        if self._control is not None or not (self._tty or self._stdin):
            return
        self._control = Control.connect(self._layout.control_socket(self._record.id))
        self._stack.callback(self._control.close)
        try:
            self._inside = self._control.attach()
        except ReconcilerError as error:
            if not self._stdin or self._tty:
                raise
            print(f"reconciler: {error}", file=sys.stderr)
            self._stdin = False
        else:
            self._stack.callback(self._hang_up)
        self._resize(again=self._only_new)

    def _hang_up(self) -> None:
        inside, self._inside = self._inside, -1
        if inside >= 0:
            os.close(inside)

    def _resize(self, *, again: bool = False) -> None:
        """Give the terminal inside the size of ours, unless we only look on; `again` has its program draw it anew."""
        looks_on = self._only_new and not self._stdin
        if not self._tty or looks_on or self._inside < 0 or not os.isatty(0):
            return
        rows, columns = window_size()
        for height in (rows + 1, rows) if again else (rows,):
            fcntl.ioctl(self._inside, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))

    # --- until its end -----------------------------------------------------------------------------------------------

    def follow(self) -> int:
        """Show everything until the container ends, and return its exit code, 128+n for signal n."""
        shim = read_shim(self._layout.shim_record(self._record.id))
        ended = open_pidfd(shim.shim) if shim is not None else None
        directory = Path(f"/proc/self/fd/{self._log}")
        since = shim.started_wall if shim is not None and self._fresh else None
        window = Window(since=since, raw=True, tail=0 if self._only_new else None)
        try:
            if ended is not None:
                self._stack.callback(os.close, ended)
            coming = follow_all(
                [Log(directory, ended)], window
            )  # before anything is typed that it may answer
            if ended is not None:
                self._join()
            self._begin()
            for _, record in coming:
                self._show(record)
        except _LeftError:
            self.left = True
            self._restore()
            print(f"left: the container goes on running; reconciler stop {self._called}", file=sys.stderr)
            return 0 if self._detached else 130
        self._restore()
        return self._code()

    def _begin(self) -> None:
        """Pass on what is typed, raw where the container has the terminal that makes something of it."""
        if not self._stdin or self._inside < 0:
            return
        if self._tty:
            self._modes = termios.tcgetattr(0)
            self._stack.callback(self._restore)
            tty.setraw(0, termios.TCSADRAIN)  # what has been typed already is for the container
        threading.Thread(target=self._feed, name="input", daemon=True).start()

    def _restore(self) -> None:
        if self._modes is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)  # type: ignore[arg-type]
            self._modes = None

    def _code(self) -> int:
        layout, identity = self._layout, self._record.id
        exited = read_exit(layout.exit_record(identity)) or read_exit(layout.settled_exit(identity))
        if exited is not None:
            return exited.code if exited.code is not None else 128 + (exited.signal or 0)
        if not layout.identity(identity).exists():
            return 128 + signal.SIGKILL  # somebody removed it
        raise ReconcilerError(
            f"container {self._called}: nobody knows how it ended", hint="run: reconciler ps -a"
        )

    # --- input, on a thread of its own -------------------------------------------------------------------------------

    def _feed(self) -> None:
        with suppress(OSError):  # EPIPE, EIO: nobody reads any more
            while data := os.read(0, _CHUNK):
                passed, left = (data, False) if self._keys is None else self._keys.take(data)
                self._write(passed)
                if left:
                    self._detached = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGWINCH)
                    return
            if self._tty:
                self._write(b"\x04")
        if not self._tty:
            self._hang_up()
            if self._control is not None:
                self._control.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._inside, view) :]
            except BlockingIOError:  # the shim's own end of a terminal does not block, and this is the same
                select.select([], [self._inside], [])

    # --- signals -----------------------------------------------------------------------------------------------------

    def _changed(self, number: int, frame: FrameType | None) -> None:
        if self._detached:
            _leave()
        self._resize()

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._modes is not None or not self._proxy:
            _leave()  # what is typed reaches it as it is: this is somebody who wants us to go
        if number in (signal.SIGINT, signal.SIGTERM):
            self._interrupts += 1
            if self._interrupts >= _INSISTED:
                _leave()
        try:
            with Control.connect(self._layout.control_socket(self._record.id)) as control:
                control.kill(number)
        except ReconcilerError:
            pass  # it has just ended

    # --- output ------------------------------------------------------------------------------------------------------

    def _show(self, record: Record) -> None:
        """Pass on the very bytes; on a terminal that nobody asked for, without what could control it."""
        stream = sys.stdout if record.stream == "stdout" else sys.stderr
        if record.dropped:
            print(f"reconciler: {record.dropped} bytes of the log were lost here", file=sys.stderr)
            return
        data = record.data
        if not self._tty and stream.isatty():
            data = printable(self._decoders[record.stream].decode(data)).encode()
        stream.buffer.write(data)
        stream.buffer.flush()


class _LeftError(Exception):
    """Somebody insisted on leaving."""


def _leave() -> NoReturn:
    raise _LeftError


def _streams(layout: Layout, container_id: str) -> tuple[bool, bool]:
    """Whether the container has a terminal, and whether anything may be typed into it."""
    try:
        config = json.loads(layout.config(container_id).read_bytes())
        terminal = config["process"]["terminal"] is True
        return terminal, bool(config["annotations"].get("dev.reconciler.stdin", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False, False
