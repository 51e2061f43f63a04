"""`Finding`: what a rule between fields, or between files, found. Pure."""

from dataclasses import dataclass

from reconciler.spec.marks import ERROR
from reconciler.spec.places import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found at `path` of the file of `app`; the app's own file if that is empty."""

    path: Path
    message: str
    severity: str = ERROR
    hint: str = ""
    at_key: bool = False
    app: str = ""
