"""Docker's credential helpers: programs that keep credentials somewhere better than in a file.

One is called with an argument list and never a shell, with an environment of its own, a time limit, and limits for what
it says. What it says when it fails is not repeated: it may hold what it was to keep secret.
"""

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Final

from reconciler.engine.registry.credentials import Credential, parse_answer
from reconciler.engine.registry.errors import KeyringError

_TIMEOUT: Final = 30.0
_LIMIT: Final = 64 * 1024
_SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where it looks for its own files, and how it gets out of the house; everything else stays outside.
_PROXIES: Final = (
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)
_PASSED: Final = ("PATH", "HOME", *_PROXIES)
# How helpers say that they have none, which is no failure (docker-credential-helpers, credentials/error.go).
_NOT_FOUND: Final = b"credentials not found in native keychain"


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a helper."""
    kept = {name: inherited[name] for name in _PASSED if name in inherited}
    return {"PATH": _SEARCH, "HOME": "/root", **kept, "LC_ALL": "C"}


def ask(name: str, server: str, *, timeout: float = _TIMEOUT) -> Credential | None:
    """Ask docker-credential-`name` for the credentials of `server`; None where it has none.

    Raises KeyringError, which names the program, where it is missing, fails, hangs or answers something else.
    """
    program = f"docker-credential-{name}"
    env = environment(os.environ)
    path = shutil.which(program, path=env["PATH"])
    if path is None:
        raise KeyringError(
            program, f"not found in {env['PATH']}", hint="install it, or take it out of the file"
        )
    try:
        process = subprocess.Popen(
            [path, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise KeyringError(program, f"can't be run: {error.strerror}") from error
    try:
        output = _conversation(process, f"{server}\n".encode(), program, timeout)
        status = process.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise KeyringError(program, f"not finished after {timeout:g} s") from error
    finally:
        _end(process)
    if status:
        if _NOT_FOUND in output:
            return None
        hint = f"see what it says: echo {server} | {program} get"
        raise KeyringError(program, f"exit status {status}", hint=hint)
    return parse_answer(output, program)


def _conversation(process: "subprocess.Popen[bytes]", question: bytes, program: str, timeout: float) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question)  # less than a pipe holds: never waits
        process.stdin.close()
    except BrokenPipeError:
        pass  # it does not want to know
    deadline = time.monotonic() + timeout
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise KeyringError(program, f"not finished after {timeout:g} s")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return bytes(output)
            output += data
            if len(output) > _LIMIT:
                raise KeyringError(program, f"more than {_LIMIT} bytes of output")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program and what it started, if anything still runs."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
