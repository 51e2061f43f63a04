"""The OCI runtime command line: what conmon, containerd's shim and people run where they would run runc.

    reconciler oci [--root DIR] [--log FILE] [--log-format text|json] VERB ...

It shares with the engine how a container is made (shim.child), and nothing else: no agent, no zygote, no monitor. The
verbs that enter a container (create, run, exec) first become a sealed copy of the interpreter, with everything loaded
that they will need; see shim.oci_entry.
"""

import argparse
import importlib
import os
import sys

from reconciler.errors import ReconcilerError
from reconciler.shim import oci_log, oci_options, sealed
from reconciler.shim.oci_state import OciError
from reconciler.shim.step import StepError

ENTERING = ("create", "run", "exec")
_ACTIONS = {
    "create": "oci_entering:create",
    "run": "oci_entering:run",
    "exec": "oci_entering:execute",
    "start": "oci_verbs:start",
    "kill": "oci_verbs:kill",
    "delete": "oci_verbs:delete",
    "pause": "oci_verbs:pause",
    "resume": "oci_verbs:resume",
    "update": "oci_verbs:update",
    "state": "oci_tell:state",
    "ps": "oci_tell:ps",
    "list": "oci_tell:list_all",
    "features": "oci_features:features",
    "spec": "oci_features:spec",
}


class Parser(argparse.ArgumentParser):
    """As runc's: a wrong command line is an error like any other, with exit code 1."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise OciError(f"{self.prog}: {message}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; raise OciError, or SystemExit after --help and --version."""
    parser = Parser(
        prog=oci_options.PROGRAM,
        description="Run containers from OCI bundles.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("-v", "--version", action="version", version=oci_options.version())
    oci_options.build(parser)
    args = parser.parse_args(arguments)
    if args.action is None:
        raise OciError(f"{oci_options.PROGRAM}: expected a verb; see: {oci_options.PROGRAM} --help")
    return args


def main(arguments: list[str]) -> int:
    """Do what `arguments` say and give the exit code; become the sealed copy first for what enters a container."""
    if oci_options.verb_of(arguments) in ENTERING:
        entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "oci_entry.py")
        try:
            sealed.execute(entry, arguments)
        except OSError as error:
            return _complain(error, None)
    return serve(arguments)


def serve(arguments: list[str], ready: object = None) -> int:
    """Do it in this process. `ready` is called once nothing has to be imported any more."""
    args: argparse.Namespace | None = None
    os.umask(0o022)
    try:
        args = parse(arguments)
        oci_log.to(args.log, args.log_format)
        if callable(ready):
            ready()
        args.root = os.path.abspath(args.root)
        if args.rootless == "true" or os.geteuid() != 0:
            raise OciError("this runtime needs root")
        module, _, function = _ACTIONS[args.action].partition(":")
        # Each loads what it needs and no more: `state` is asked for all the time
        code: int = getattr(importlib.import_module(f"reconciler.shim.{module}"), function)(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (ReconcilerError, StepError, OSError) as error:
        return _complain(error, args)


def _complain(error: Exception, args: argparse.Namespace | None) -> int:
    """Say what failed and give the exit code; `exec` fails as a shell does."""
    oci_log.error(sentence(error))
    return 255 if args is not None and args.action == "exec" else 1


def sentence(error: Exception) -> str:
    """Put a failure into the words that callers of runc look for."""
    if isinstance(error, StepError) and error.step == "exec":
        if error.errno == 2 and "/" not in error.path:
            return f'exec: "{error.path}": executable file not found in $PATH'
        return f'exec: "{error.path}": {str(error).removeprefix(f"exec: {error.path}: ")}'
    if isinstance(error, StepError) and error.step == "hook":
        return str(error).removeprefix(f"hook: {error.path}: ")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{(error.strerror or str(error)).lower()}"
    return str(error)
