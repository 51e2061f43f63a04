"""Devices, images and stories for tests that break things. What a test leaves on the machine fails it."""

import pytest

from tests.e2e.conftest import box, box2, device
from tests.e2e.device import Device
from tests.faults.story import Story, images
from tests.images import Built
from tests.kernel.leaks import leak_check

__all__ = ["box", "box2", "device", "leak_check"]


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """Two versions of one image."""
    return images(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def story(device: Device, versions: tuple[Built, Built], box: Built) -> Story:
    """The story on a fresh device, not begun yet."""
    return Story(device, *versions, box)
