"""The git program, run so that neither a repository nor a server can make it do more than it is told to.

No work tree, no hooks, no configuration but ours, one allowed protocol, no prompts, a time limit, and limits for what
is written and said. Whatever a server sends is data: bytes on stdout, and a cleaned last line of stderr in the error.
"""

import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from reconciler.errors import ReconcilerError, TimedOutError, UnsupportedError
from reconciler.source.address import hide_credentials

MAX_PACK: Final = 512 * 1024 * 1024  # bytes that git may write into one file
_MAX_SAID: Final = 64 * 1024

# Variables that a person may have set for a proxy, a private CA or an ssh agent; everything else stays outside.
_PASSED: Final = (
    "PATH", "HOME", "USER", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "TMPDIR",
    "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY",
)  # fmt: skip

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=false",
    "core.askPass=",
    "credential.helper=",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.fsckObjects=true",
    "fetch.unpackLimit=1",
    "fetch.writeCommitGraph=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.version=2",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "http.followRedirects=initial",
    "pack.threads=1",
    "pack.windowMemory=64m",
    "core.bigFileThreshold=16m",
)


class GitError(ReconcilerError):
    """git said no; the message has what it said."""

    transient = True


def environment(protocol: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of git for a source of this protocol ("" where it needs no network)."""
    return {
        **{name: inherited[name] for name in _PASSED if name in inherited},
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        # Beats every protocol.* setting, and the default that lets `file` and `ext` pass (git(1)).
        "GIT_ALLOW_PROTOCOL": protocol or "none",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=10 -oServerAliveCountMax=3",
        "GIT_SSH_VARIANT": "ssh",
    }


def command(repository: Path, arguments: Sequence[str]) -> list[str]:
    """Return the argument vector for git on the bare `repository`."""
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    return ["git", f"--git-dir={repository}", *settings, *arguments]


def spawn(
    repository: Path,
    arguments: Sequence[str],
    *,
    protocol: str = "",
    lock: int | None = None,
    stdin: bool = False,
) -> subprocess.Popen[bytes]:
    """Start git with pipes, in a session of its own; it holds the lock `lock` for as long as it lives."""
    try:
        process = subprocess.Popen(
            command(repository, arguments),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment(protocol, os.environ),
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
    except FileNotFoundError as error:
        raise UnsupportedError("git: not installed", hint="run: apt-get install git") from error
    try:
        # A limit for the pack that a server sends (T4); no Python may run between fork and exec, hence from outside.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MAX_PACK, MAX_PACK))
    except ProcessLookupError:
        pass  # it has ended already
    return process


def run(
    repository: Path,
    arguments: Sequence[str],
    *,
    protocol: str = "",
    timeout: float,
    limit: int = 1024 * 1024,
    lock: int | None = None,
) -> bytes:
    """Run git and return its output; GitError with its last words, TimedOutError after `timeout` seconds.

    More than `limit` bytes of output are an error too.
    """
    process = spawn(repository, arguments, protocol=protocol, lock=lock)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        output, said, in_time = _collect(process.stdout, process.stderr, timeout, limit)
        if not in_time:
            raise TimedOutError(f"git {arguments[0]}: not finished after {timeout:g} s")
        if len(output) > limit:
            raise GitError(f"git {arguments[0]}: more than {limit} bytes of output", transient=False)
        status = process.wait(timeout=10)
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"git {arguments[0]}: does not end") from error
    finally:
        end(process)
    if status:
        raise GitError(_failure(arguments[0], status, said))
    return output


def end(process: subprocess.Popen[bytes]) -> None:
    """End git and what it started, if anything still runs, and let go of its pipes."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what was still to be written to it is of no use to anybody


def _collect(stdout: IO[bytes], stderr: IO[bytes], timeout: float, limit: int) -> tuple[bytes, bytes, bool]:
    """Read both pipes to their ends, within `timeout`; of stderr the last part is kept."""
    deadline = time.monotonic() + timeout
    output, said = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ, output)
        selector.register(stderr, selectors.EVENT_READ, said)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(output), bytes(said), False
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data)
            del said[:-_MAX_SAID]
            if len(output) > limit:
                break
    return bytes(output), bytes(said), True


def _failure(verb: str, status: int, said: bytes) -> str:
    """The error's text: git's own words, without hints, progress, credentials or control characters."""
    if -status in (signal.SIGXFSZ, signal.SIGKILL) or b"File too large" in said or b"signal 25" in said:
        return f"git {verb}: the repository is larger than {MAX_PACK // 1024 // 1024} MiB, or git was killed"
    lines = [line.strip() for line in said.decode("utf-8", "replace").replace("\r", "\n").splitlines()]
    words = [
        line for line in lines if line.startswith(("fatal:", "error:", "remote: error", "ssh:"))
    ] or lines
    text = hide_credentials("; ".join(word.removeprefix("fatal: ") for word in words[:3] if word))
    return f"git {verb}: {text[:400] or f'exit status {status}'}"
