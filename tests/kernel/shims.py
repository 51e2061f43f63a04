"""Containers with real zygote and shims, as the agent has them, in a directory of the test's own."""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.engine import logs
from reconciler.engine.layout import Layout
from reconciler.engine.process import (
    Command,
    Control,
    Created,
    ExitRecord,
    ShimRecord,
    Zygote,
    read_exit,
    read_shim,
)
from tests.kernel.box import Bundle, make_bundle
from tests.kernel.leaks import LeakCheck


class Case:
    """One container: its bundle, its run directory, and what was made of it."""

    def __init__(self, host: "Host", bundle: Bundle, run: Path) -> None:
        self.host = host
        self.bundle = bundle
        self.run = run
        self.log = bundle.directory / "log"
        self.created: Created | None = None

    def create(self, timeout: float = 30.0) -> Created:
        self.bundle.compile()
        (self.bundle.directory / "config.json").write_text(json.dumps(self.bundle.config))
        self.created = self.host.zygote.create(self.bundle.directory, self.run, timeout=timeout)
        return self.created

    def start(self) -> "Case":
        if self.created is None:
            self.create()
        with self.control() as control:
            control.start()
        return self

    def control(self) -> Control:
        return Control.connect(self.run / "control.sock")

    def shim(self) -> ShimRecord:
        found = read_shim(self.run / "shim.json")
        assert found is not None
        return found

    def ended(self) -> ExitRecord:
        """Wait for the shim's end, as the agent does, and read the record, which must be there by then."""
        assert self.created is not None
        assert wait(self.created.shim_pidfd, 20 * self.host.patience)
        record = read_exit(self.run / "exit.json")
        assert record is not None
        return record

    def output(self) -> list[bytes]:
        return [record.data for record in logs.read(self.log)]

    def until(self, line: bytes) -> None:
        """Wait until the log holds `line`."""
        eventually(lambda: self.log.is_dir() and line in self.output(), 20 * self.host.patience)

    def exec(
        self, *arguments: str, user: str | None = None, cwd: str | None = None, env: tuple[str, ...] = ()
    ) -> str:
        """Run a program inside and give its output; it must succeed."""
        code, text = self.exec_code(*arguments, user=user, cwd=cwd, env=env)
        assert code == 0, text
        return text

    def exec_code(
        self, *arguments: str, user: str | None = None, cwd: str | None = None, env: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        with contextlib.ExitStack() as stack, self.control() as control:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            null = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, null)
            try:
                running = control.execute(Command(arguments, env, user, cwd), (null, writer, writer))
            finally:
                os.close(writer)
            chunks = []
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)
            return running.wait(20 * self.host.patience), b"".join(chunks).decode(errors="replace")

    def kill(self) -> None:
        if self.created is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.created.init_pidfd, signal.SIGKILL)
            wait(self.created.shim_pidfd, 10)
            self.created.close()
            self.created = None


class Host:
    """A zygote and its containers; `layer` is a root file system of busybox."""

    def __init__(self, directory: Path, layer: Path, patience: float) -> None:
        self.directory = directory
        self.layer = layer
        self.patience = patience
        self.layout = Layout(directory / "state", directory / "run")
        self.zygote = Zygote(self.layout)
        self.cases: list[Case] = []

    def case(self, *arguments: str, name: str = "", env: tuple[str, ...] = (), log: bool = True) -> Case:
        number = len(self.cases)
        bundle = make_bundle(self.directory / f"bundle{number}", [self.layer], *arguments, env=env)
        run = self.directory / f"run{number}"
        run.mkdir(mode=0o700)
        bundle.annotate("name", name or f"test/case{number}")
        if log:
            self.log(bundle)
        case = Case(self, bundle, run)
        self.cases.append(case)
        return case

    @staticmethod
    def log(bundle: Bundle, **changes: object) -> None:
        directory = bundle.directory / "log"
        directory.mkdir(exist_ok=True)
        value = {"directory": str(directory), "driver": "file", "max_size": 1 << 20, "max_files": 100}
        bundle.annotate("log", {**value, "compress": False, **changes})

    def shell(self, script: str, **options: str) -> Case:
        return self.case("/bin/sh", "-c", script, **options)  # type: ignore[arg-type]

    def complaints(self) -> str:
        """What zygote and shims printed: crashes, and imports that came too late."""
        path = self.layout.zygote / "stderr"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for case in self.cases:
            case.kill()
        self.zygote.close()


@pytest.fixture
def host(tmp_path: Path, busybox: Path, leak_check: LeakCheck, patience: float) -> Iterator[Host]:
    """A host whose shims must not complain, and leave nothing behind."""
    host = Host(tmp_path, busybox, patience)
    try:
        yield host
    finally:
        host.close()
    assert host.complaints() == ""


def wait(pidfd: int, seconds: float) -> bool:
    """Wait for the process of `pidfd` to end."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that gives no sign; poll gently."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        select.select([], [], [], 0.02)


def gone(pid: int) -> bool:
    """Say whether nothing of `pid` runs; a zombie that PID 1 has not reaped counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
