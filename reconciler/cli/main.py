"""The command line: the tree of verbs, and the one place where errors become messages and exit codes.

A verb's function is imported only when it is called, because `reconciler --help` and completion must answer in tens of
milliseconds. Exit codes are those of docs/cli.md; argparse's own 2 would read as "changes pending", so usage
errors are 64.
"""

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from reconciler.cli import completion, docker, oci, options
from reconciler.errors import ReconcilerError


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors exit with 64."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"argument (?:VERB|ACTION): invalid choice: '([^']*)'", message)
        if unknown is not None:
            words = (*self.prog.split()[1:], unknown[1])
            if said := docker.instead(words):
                print(f"{self.prog}: '{unknown[1]}' is a command of Docker's; {said}", file=sys.stderr)
                raise SystemExit(64)
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(64)


def build_parser(verb: str | None = None) -> Parser:
    """The whole tree; pure, so that the documentation is generated from it.

    With `verb` only that one has its options: what parses one command line need not know those of all others, which
    takes longer to build than many verbs take to run.
    """
    parser = Parser(
        prog="reconciler",
        description="Keep the containers of this device equal to a directory or a git branch of specs.",
        epilog="Run `reconciler VERB --help` for one verb. Exit codes are listed in docs/cli.md.",
    )
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", parser_class=Parser)
    for name, help_text, add in options.VERBS:
        added = verbs.add_parser(
            name, help=help_text, description=help_text, formatter_class=argparse.RawTextHelpFormatter
        )
        if verb is None or name == verb:
            add(added)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Parse, call the verb, and turn every failure into one message and an exit code.

    Never a traceback for bad input. A reader that goes away ends a verb with 141, as SIGPIPE would; the signal itself
    stays ignored, because a registry that hangs up must not kill a verb that is at work.
    """
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # names on disk need not be UTF-8, and no locale has every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["oci"]:
        return oci.run(arguments[1:])
    if arguments[:1] == [completion.COMPLETE]:
        return completion.complete(arguments[1:])
    # No option stands before the verb, other than --help
    parser = build_parser(next(iter(arguments), ""))
    parsed = parser.parse_args(arguments)
    if parsed.verb is None:
        parser.print_help(sys.stderr)
        return 64
    module, _, function = parsed.call.partition(":")
    try:
        _arm(os.environ.get("RECONCILER_FAILPOINT", ""))
        code = getattr(importlib.import_module(f"reconciler.cli.{module}"), function)(parsed)
        sys.stdout.flush()
        return int(code)
    except ReconcilerError as error:
        complain(error, sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # a signal that a verb turned into its orderly end
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more can be written, not even at exit
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"reconciler: {where}{error.strerror or error}", file=sys.stderr)
        return 9 if isinstance(error, PermissionError) else 1


def _arm(points: str) -> None:
    """Arm fail points where a test asks for them; nobody else pays for the import."""
    if points:
        from reconciler.failpoint import arm

        arm(points)


def complain(error: ReconcilerError, stream: TextIO) -> None:
    """Print what failed and what to do next. A registry, or a name on disk, may have had a word in it."""
    from reconciler.report.tables import printable  # only an error needs it: --help must be quick

    shown = printable if stream.isatty() else str
    print(shown(f"reconciler: {error}" if "\n" not in str(error) else str(error)), file=stream)
    if error.hint:
        print(shown(f"  {error.hint}"), file=stream)
