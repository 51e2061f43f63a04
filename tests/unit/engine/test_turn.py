"""One works at a time, in the order in which they came, and nobody for long while others wait."""

import threading
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine.turn import Turn


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work` on so many threads, and wait for all."""
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.0, 0.0001, 10.0]))
def test_one_at_a_time_and_everybody_comes_to_an_end(count: int, steps: int, slice: float) -> None:
    turn = Turn(slice)
    inside: list[int] = []
    done: list[int] = []

    def work(number: int) -> None:
        turn.take()
        for step in range(steps):
            inside.append(number)
            assert inside == [number]
            inside.pop()
            if step % 3 == 2:
                turn.give()
                turn.take()
            else:
                turn.share()
        turn.give()
        done.append(number)

    together(count, work)
    assert sorted(done) == list(range(count))
    turn.take()  # it is free again


def test_who_waits_gets_it_after_a_slice_and_in_order() -> None:
    turn = Turn(60.0)
    order: list[str] = []
    turn.take()

    def wait(name: str) -> None:
        turn.take()
        order.append(name)
        turn.give()

    threads = []
    for name in ("first", "second"):
        threads.append(threading.Thread(target=wait, args=(name,), daemon=True))
        threads[-1].start()
        while len(turn._waiting) < len(threads):
            time.sleep(0.001)
    turn.share()  # too soon
    assert order == []
    turn._slice = 0.0  # a slice later
    turn.share()
    order.append("again")
    turn.give()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second", "again"]


def test_nobody_waits_so_that_it_is_kept() -> None:
    turn = Turn(0.0)
    turn.take()
    for _ in range(1000):
        turn.share()
    turn.give()
    turn.take()
