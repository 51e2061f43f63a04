"""The board of pulls: a layer counts for every image that lacks it, and nothing is kept of what is over."""

from reconciler.engine.progress import Phase, Progress, Pulling, Pulls
from reconciler.spec.reference import Digest
from reconciler.state.image import Layer


def layer(number: int, size: int) -> Layer:
    digest = Digest("sha256", f"{number:064x}")
    return Layer(digest=digest, diff_id=digest, chain_id=digest, size=size, media_type="x")


A, B, C = layer(1, 100), layer(2, 50), layer(3, 7)


def told(item: Layer, done: int, phase: Phase = Phase.DOWNLOADING, **more: object) -> Progress:
    return Progress(item.digest, done, item.size, phase, **more)  # type: ignore[arg-type]


def test_a_pull_is_shown_from_its_first_moment_to_its_last() -> None:
    heard: list[Progress] = []
    pulls = Pulls(heard.append)
    with pulls.pulling("x", (A, B)):
        assert pulls.now() == {"x": Pulling(0, 150, 0, 2)}
        pulls(told(A, 40))
        pulls(told(B, 50, Phase.DONE))
        assert pulls.now() == {"x": Pulling(90, 150, 1, 2)}
    assert pulls.now() == {}
    assert [progress.done for progress in heard] == [40, 50]


def test_a_layer_that_two_images_need_counts_for_both() -> None:
    pulls = Pulls(lambda _: None)
    with pulls.pulling("x", (A, B)):
        pulls(told(A, 40))
        with pulls.pulling("y", (A, C)):
            assert pulls.now()["y"] == Pulling(40, 107, 0, 2)
        assert pulls.now() == {"x": Pulling(40, 150, 0, 2)}


def test_a_late_word_of_a_pull_that_is_over_says_nothing_about_the_next() -> None:
    pulls = Pulls(lambda _: None)
    with pulls.pulling("x", (A,)):
        pass
    pulls(told(A, 100, Phase.DONE))
    with pulls.pulling("x", (A,)):
        assert pulls.now() == {"x": Pulling(0, 100, 0, 1)}


def test_the_wait_that_is_over_first_is_told() -> None:
    pulls = Pulls(lambda _: None)
    with pulls.pulling("x", (A, B)):
        pulls(told(A, 10, Phase.WAITING, until=30.0, trouble="busy"))
        pulls(told(B, 0, Phase.WAITING, until=20.0, trouble="down"))
        assert pulls.now() == {"x": Pulling(10, 150, 0, 2, 20.0, "down")}
        pulls(told(B, 5))
        assert pulls.now() == {"x": Pulling(15, 150, 0, 2, 30.0, "busy")}


def test_what_is_here_already_is_no_pull() -> None:
    pulls = Pulls(lambda _: None)
    with pulls.pulling("x", ()):
        assert pulls.now() == {}
