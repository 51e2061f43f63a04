"""What is run beside a container's program, as events: who, what, where, and how it ended.

Written here and not by the verb, because every such program comes through a shim: whoever asks, whether or not an agent
runs, and also where the one who asked is killed. What can't be written is said to who asked, and runs all the same.

A command line is recorded as it is, as Docker's `exec_start` has it, up to 1024 characters. Its environment is not, nor
what goes in or comes out.
"""

import json
import os
import time

from reconciler.shim import eventfile
from reconciler.shim.fields import PREFIX, Section

HALF = 1024 * 1024  # bytes of each of the two files, as `report.events` keeps them
_LONGEST_LINE = 8 * 1024
_LONGEST_TEXT = 1024
_LONGEST_NAME = 256
_NOBODY = 0xFFFFFFFF  # what /proc/PID/loginuid says where nobody has logged in
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")


class Trace:
    """One program: `begin` before it is started, `end` once, however it goes. `problem` is why one is not recorded."""

    __slots__ = ("_about", "_began", "_called", "_command", "_path", "problem")

    def __init__(self, config: dict[str, object], asked: Section, bundle: int, client: int) -> None:
        """`asked` is the request, `bundle` the container's open directory, `client` the pid of who asks."""
        annotations = Section(config, "annotations")
        self._path = annotations.text(PREFIX + "events")
        app, container = _name(bundle, annotations.text(PREFIX + "name"))
        self._called = f"{app}/{container}"
        self._command = command_line(asked.strings("args"))
        self._began = 0.0
        self._about: dict[str, object] = {
            "subject": app,
            "container": container,
            "id": os.path.basename(os.readlink(f"/proc/self/fd/{bundle}")),
            "exec": os.urandom(6).hex(),
            "user": (str(asked.raw("user") or "") or annotations.text(PREFIX + "user") or "0")[
                :_LONGEST_NAME
            ],
            "tty": asked.flag("tty"),
            "origin": asked.text("origin")[:32] or "unknown",
            "login_uid": _login(client),
        }
        self.problem = ""

    def begin(self) -> None:
        """Record that it is asked for."""
        self._began = time.monotonic()
        terminal = ", on a terminal" if self._about["tty"] else ""
        self._append(f" (as {self._about['user']}{terminal})", {})

    def end(self, code: int, error: str = "") -> None:
        """Record its end: the exit code as a shell has it, 128+n for signal n; `error` where it never ran."""
        if not self._began:
            return
        how = f": {error}" if error else f": exit {code}"
        more: dict[str, object] = {"exit_code": code, "seconds": round(time.monotonic() - self._began, 3)}
        self._began = 0.0
        self._append(how[:_LONGEST_NAME], {**more, "error": error[:_LONGEST_TEXT]} if error else more)

    def _append(self, how: str, more: dict[str, object]) -> None:
        if not self._path:
            return
        longest = _LONGEST_TEXT
        while True:
            command = self._command[:longest]
            event: dict[str, object] = {
                "time": round(time.time(), 3),
                "kind": "exec",
                **self._about,
                "message": f"exec {self._called}: {command}{how}",
                "command": command,
                **more,
            }
            if len(command) < len(self._command):
                event["cut"] = True
            line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
            if len(line) <= _LONGEST_LINE or not longest:
                break
            longest //= 2
        try:
            eventfile.append(self._path, line, HALF)
        except OSError as problem:
            self.problem = f"{self._path}: {problem.strerror}"


def command_line(arguments: list[str]) -> str:
    """Write a command so that a shell would read it as these arguments."""
    return " ".join(
        word if word and _PLAIN.issuperset(word) else "'" + word.replace("'", "'\"'\"'") + "'"
        for word in arguments
    )


def _name(bundle: int, full_name: str) -> tuple[str, str]:
    """Give the app and the name of the container: as its record has them now, for it may have been renamed."""
    try:
        fd = os.open("identity.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=bundle)
        with open(fd, "rb") as file:
            record = json.load(file)
        return str(record["app"])[:_LONGEST_NAME], str(record["name"])[:_LONGEST_NAME]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        app, _, container = full_name.partition("/")
        return app, container


def _login(client: int) -> int | None:
    """Give the user id with which the one who asks once logged in, which `sudo` and `su` keep; None without a login."""
    try:
        fd = os.open(f"/proc/{client}/loginuid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # a kernel without CONFIG_AUDIT, or gone
    try:
        found = int(os.read(fd, 32))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return None if found == _NOBODY else found
