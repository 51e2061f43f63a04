"""A real mirror: docker-registry as a pull-through cache of another one, which may go away afterwards."""

from collections.abc import Iterator

import pytest

from reconciler.config import Registries
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.patience import Patience
from reconciler.engine.store import Store
from reconciler.spec.reference import Reference
from tests.images import busybox
from tests.kernel.workshop import remove, scratch
from tests.registry import DockerRegistry

pytestmark = pytest.mark.kernel


@pytest.fixture
def registries() -> Iterator[tuple[DockerRegistry, DockerRegistry]]:
    """A registry, and the cache of it."""
    if not DockerRegistry.available():
        pytest.skip("docker-registry is not installed")
    path = scratch("through")
    with DockerRegistry(path / "origin") as origin:
        cache = DockerRegistry(path / "cache", more=f"proxy: {{remoteurl: 'http://{origin.name}'}}")
        with cache:
            yield origin, cache
    remove(path)


def test_a_pull_through_cache_serves_what_its_registry_no_longer_does(
    registries: tuple[DockerRegistry, DockerRegistry],
) -> None:
    origin, cache = registries
    path = scratch("device")
    built = busybox(path / "layout")
    reference = Reference.parse(origin.push(built, "tools/box"))
    settings = Registries(insecure=(origin.name, cache.name), mirrors={origin.name: (cache.name,)})
    for number in (1, 2):
        layout = Layout(path / f"state{number}", path / "run")
        store = Store(layout)
        store.prepare()
        client = Registry(settings, patience=Patience(retries=(0.01,)))
        images = Images(store, layout, registry=client, platform=host_platform(), limits=Limits(reserve=0))
        image = images.resolve(reference)
        images.pull(image, reference)
        assert images.missing(image) == ()
        packed = sum(layer.size for layer in image.layers)
        assert images.received == {(origin.name, "mirror", "full"): packed}
        assert {registry for registry, _ in images.requests} == {cache.name}
        if number == 1:
            origin.stop()
        else:
            with pytest.raises(RegistryError) as caught:  # what the cache has never seen is asked of both
                images.digest(Reference.parse(f"{origin.name}/tools/other:1"))
            assert f"mirror {cache.name}: " in caught.value.hint
        images.close()
    remove(path)
