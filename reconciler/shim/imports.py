"""The end of importing, for processes that enter a container: what they will ever need they have by then."""

import importlib.machinery
from collections.abc import Sequence
from types import ModuleType


class NoMoreImports:
    """The only finder that is left: it finds nothing, and says what was asked for."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        raise ImportError(f"{name}: imported where nothing may be imported any more", name=name)
