"""What `reconciler oci` has to say beside its output: on standard error, and in the file that the caller names.

In that file each entry is a line, in the form of the log of runc, which callers read.
"""

import json
import os
import sys
import time

from reconciler.shim.oci_options import PROGRAM

_where = ["", "text"]  # the file and its form


def to(file: str, form: str) -> None:
    """Have errors and warnings go to `file` too, in the form `text` or `json`."""
    _where[:] = [file, form]


def warn(text: str) -> None:
    """Say what the caller should know, and go on."""
    _say("warning", text, f"warning: {text}")


def error(text: str) -> None:
    """Say why it ends here."""
    _say("error", text, text)


def _say(level: str, text: str, shown: str) -> None:
    file, form = _where
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if form == "json":
        line = json.dumps({"level": level, "msg": text, "time": now})
    else:
        line = f'time="{now}" level={level} msg="{_quoted(text)}"'
    if file:
        try:
            fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.write(fd, line.encode(errors="surrogateescape") + b"\n")
            os.close(fd)
        except OSError as cause:
            print(f"{PROGRAM}: {file}: {cause.strerror}", file=sys.stderr)
    print(f"{PROGRAM}: {shown}", file=sys.stderr)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
