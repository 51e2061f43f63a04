"""What a failure between clone and exec looks like: one JSON object that names the step, the path and the errno.

Used inside the child only. Imports nothing of this program, so that it is there whatever else is broken.
"""

import json
import os

KILLED = b'{"step":"child","path":"","errno":0,"message":"child: killed before the program ran"}'


class StepError(Exception):
    """Step `step` of a container's start failed at `path` with `errno` (0 where no call failed)."""

    def __init__(self, step: str, path: str, errno: int, reason: str) -> None:
        super().__init__(f"{step}: {path}: {reason}" if path else f"{step}: {reason}")
        self.step = step
        self.path = path
        self.errno = errno

    def line(self) -> bytes:
        """Give the line that goes through the error pipe, newline included: {"errno", "message", "path", "step"}."""
        value = {"step": self.step, "path": self.path, "errno": self.errno, "message": str(self)}
        return json.dumps(value, sort_keys=True).encode() + b"\n"


class Step:
    """`with Step("mount", "/proc"):` turns an OSError inside into a StepError of that step and path.

    The message keeps the failing call's name, because most steps are several calls.
    """

    __slots__ = ("name", "path")

    def __init__(self, name: str, path: str = "") -> None:
        self.name = name
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise StepError(self.name, self.path, error.errno or 0, reason(error)) from error


def reason(error: OSError) -> str:
    """Put an OSError into words: `move_mount: permission denied`, with the path of the call where it has one."""
    text = error.strerror or os.strerror(error.errno or 0)
    call, colon, rest = text.rpartition(": ")
    text = f"{call}{colon}{rest[:1].lower()}{rest[1:]}"
    return f"{text} ({error.filename})" if isinstance(error.filename, str) and error.filename else text


def failure(line: bytes) -> dict[str, object]:
    """Read the line of a child that failed before its program ran; without one it was killed before it could write."""
    try:
        value = json.loads(line)
        return {key: value[key] for key in ("step", "path", "errno", "message")}
    except (ValueError, KeyError, TypeError):
        killed: dict[str, object] = json.loads(KILLED)
        return killed


def problem(line: bytes) -> StepError:
    """Make the exception of it again."""
    found = failure(line)
    result = StepError(str(found["step"]), str(found["path"]), 0, "")
    result.errno = found["errno"] if isinstance(found["errno"], int) else 0
    result.args = (found["message"],)
    return result
