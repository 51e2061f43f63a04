"""Fixtures that every hostile test may ask for by name."""

from tests.kernel.box import busybox
from tests.kernel.leaks import leak_check
from tests.kernel.shims import host

__all__ = ["busybox", "host", "leak_check"]
