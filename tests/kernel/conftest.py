"""Fixtures that every kernel test may ask for by name."""

from tests.kernel.box import busybox
from tests.kernel.leaks import leak_check

__all__ = ["busybox", "leak_check"]
