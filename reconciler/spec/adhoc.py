"""The name under which containers that people run by hand live beside the apps of specs, and how these are named.

They are the containers of one reserved app. No spec may have its name: its containers would be removed, or theirs.
"""

import re
from typing import Final

ADHOC: Final = "adhoc"
COMMAND_LINE: Final = "by-hand"  # the app of the text that a command line is turned into
# Docker's grammar, and no longer than what a name in DNS may be: siblings find each other by it.
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether an ad-hoc container may have this name."""
    return _NAME.fullmatch(text) is not None
