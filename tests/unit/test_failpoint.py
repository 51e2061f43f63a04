"""Fail points: the grammar, counts that run out, and nothing at all where none is armed."""

import errno
import os
import signal
import time
from collections.abc import Iterator

import pytest

from reconciler.errors import UsageError
from reconciler.failpoint import InjectedError, arm, failpoint


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def test_nothing_happens_where_nothing_is_armed() -> None:
    failpoint("create.made")
    arm("create.recorded:error")
    failpoint("create.made")


def test_an_error_carries_its_message_and_may_be_tried_again() -> None:
    arm("a.b:error(the disk is on fire)")
    for _ in range(3):  # without a count: for ever
        with pytest.raises(InjectedError, match=r"a\.b: the disk is on fire") as raised:
            failpoint("a.b")
        assert raised.value.transient


def test_counts_run_out_and_the_next_term_takes_over() -> None:
    arm("a:2*off->1*error->1*enospc")
    failpoint("a")
    failpoint("a")
    with pytest.raises(InjectedError):
        failpoint("a")
    with pytest.raises(OSError, match="No space left") as raised:
        failpoint("a")
    assert raised.value.errno == errno.ENOSPC
    failpoint("a")


def test_several_points_are_armed_at_once_and_a_new_text_replaces_them() -> None:
    arm("a:1*error;b:1*error")
    with pytest.raises(InjectedError):
        failpoint("b")
    arm("b:off")
    failpoint("a")
    failpoint("b")


def test_a_delay_is_in_milliseconds() -> None:
    arm("a:1*delay(20)")
    began = time.monotonic()
    failpoint("a")
    assert time.monotonic() - began >= 0.02


def test_kill_ends_the_process_as_a_power_cut_would() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            arm("a:1*kill")
            failpoint("a")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "text", ["a", ":kill", "a:", "a:explode", "a:1*", "a:delay", "a:delay(x)", "a:x*kill"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"not understood|milliseconds"):
        arm(text)
