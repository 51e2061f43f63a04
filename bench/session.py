"""What all benchmarks of a run share: the place, the peers, the registry, the images, and how thorough to be.

Everything in it is made when it is first asked for, and taken down by `close`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from bench.measure import Moments, Sample
from bench.peers import Peers
from bench.place import Place
from bench.subject import Instance, build_first, build_image
from tests.images import Built
from tests.registry import DockerRegistry


class Session:
    """One run. `rounds` overrides how often each benchmark repeats; `quick` asks for the shortest useful run.

    `images` are those that pulls are measured with, None for the usual ones.
    """

    def __init__(
        self, place: Place, *, rounds: int | None, quick: bool, images: Sequence[str] | None = None
    ) -> None:
        self.place = place
        self.images = images
        self.quick = quick
        self._rounds = rounds
        self._stack = ExitStack()
        self._instances = 0
        self.fifty: dict[
            str, tuple[Sample, int]
        ] = {}  # by peer: fifty containers up, and the memory they cost
        self.peers = Peers(place)
        self._stack.callback(self.peers.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rounds(self, usual: int) -> int:
        """How often to repeat what is usually repeated `usual` times."""
        return self._rounds or ((usual + 2) // 3 if self.quick else usual)

    def say(self, text: str) -> None:
        """Tell whoever watches; results go to standard output, this does not."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    @cached_property
    def moments(self) -> Moments:
        return self._stack.enter_context(Moments(self.place.root / "out"))

    @cached_property
    def binary(self) -> Path:
        return build_first(self.place.root)

    @cached_property
    def image(self) -> Built:
        return build_image(self.place.root / "image", self.binary)

    @cached_property
    def registry(self) -> DockerRegistry:
        return self._stack.enter_context(DockerRegistry(self.place.root / "registry"))

    @cached_property
    def pushed(self) -> str:
        """The measured program's image in the registry, by tag, for peers."""
        return self.registry.push(self.image, "first").partition("@")[0]

    @contextmanager
    def instance(self) -> Iterator[Instance]:
        """An instance of ours that knows the measured program's image, and has it here."""
        self._instances += 1
        instance = Instance(self.place, f"i{self._instances}", [self.image.layout], self.moments)
        try:
            instance.warm(str(self.image.digest))
            yield instance
        finally:
            instance.close()
