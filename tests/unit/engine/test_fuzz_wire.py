"""What strangers send (manifests, references, challenges, headers, archives): a value, or an error of ours."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.spec.reference import InvalidReferenceError, Reference
from tests.fuzz.targets import TARGETS

_PIECES = [
    b"", b"\0", b"\n", b'"', b"\\", b",", b"=", b":", b"/", b"@", b"..", b"sha256:", b"[", b"]", b"{", b"}", b"-1",
    b"9" * 20, b"1e400", b"NaN", b"null", b"true", b"\xff\xfe", b"\xe2\x80\xae", b"bytes ", b"bearer ", b"realm=",
    b"A" * 3000, b"ustar\0", b" ",
]  # fmt: skip
_CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(_PIECES)), max_size=5)


def _changed(seed: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """`seed` with pieces put in the place of some of its bytes."""
    for where, count, piece in changes:
        at = int(where * len(seed))
        seed = seed[:at] + piece + seed[at + count :]
    return seed


def _cases() -> Iterator[tuple[str, bytes]]:
    for name, target in TARGETS.items():
        for seed in target.seeds:
            yield name, seed


@pytest.mark.parametrize(("name", "seed"), list(_cases()))
def test_seeds_get_through(name: str, seed: bytes) -> None:
    TARGETS[name].run(seed)


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_g4_g10_g11_whatever_comes_is_a_value_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(target.seeds))
    target.run(_changed(seed, data.draw(_CHANGES)))
    target.run(data.draw(st.binary(max_size=300)))


def test_an_error_about_a_reference_is_short_whatever_it_quotes() -> None:
    """Found by fuzzing: five hundred control characters were quoted twice, as escapes."""
    for text in ("l\0" * 200 + "s:5/z:" + "\x15" * 90, "a.b/" + "\x1c" * 500, "h:1/x:" + "\U000e0001" * 400):
        TARGETS["reference"].run(text.encode("latin-1", "replace"))
        with pytest.raises(InvalidReferenceError) as caught:
            Reference.parse(text)
        assert len(str(caught.value)) < 1000
