"""What is printed is fit for where it goes: a terminal, a pipe, a locale without the characters."""

import io
import subprocess
import sys

from reconciler.cli.console import Console
from reconciler.cli.main import complain
from reconciler.errors import ReconcilerError

EVIL = "registry: \x1b[2J\u202e said no\nand more"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a3_errors_and_the_agents_output_move_no_cursor() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    complain(ReconcilerError(EVIL, hint="run: \x1b]0;x\x07"), terminal)
    Console(terminal, stamps=False).problem(EVIL)
    assert not set(terminal.getvalue()) & {"\x1b", "\u202e", "\x07"}
    assert "\\x1b[2J" in terminal.getvalue()
    complain(ReconcilerError(EVIL), pipe)
    assert pipe.getvalue() == f"{EVIL}\n"


def test_a_name_that_no_locale_has_is_printed_all_the_same() -> None:
    script = (
        "import sys; from reconciler.cli import main, status\n"
        "status.ps = lambda args: print('caf\\udce9 \\u4e2d') or 0\n"
        "sys.exit(main.run(['ps']))"
    )
    for encoding in ("utf-8", "latin-1", "ascii"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            env={"PYTHONIOENCODING": encoding},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), done
        assert done.stdout.startswith(b"caf\\udce9")
