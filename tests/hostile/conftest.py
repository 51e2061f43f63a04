"""Fixtures that every hostile test may ask for by name."""

from tests.e2e.conftest import box, device
from tests.kernel.box import busybox
from tests.kernel.leaks import leak_check
from tests.kernel.shims import host

__all__ = ["box", "busybox", "device", "host", "leak_check"]
