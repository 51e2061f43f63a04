"""`limits.hugepages`: bytes by size of page."""

import pytest

from reconciler.spec.fault import Faults
from reconciler.spec.resources import hugepages


def test_both_are_sizes() -> None:
    assert hugepages({"2Mi": "64Mi", "1Gi": 0, "64Ki": "128Ki"}) == {
        2 << 20: 64 << 20,
        1 << 30: 0,
        64 << 10: 128 << 10,
    }
    assert hugepages({}) == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"3Mi": "3Mi"}, "'3Mi' is no size of a huge page"),
        ({"4Ki": "4Ki"}, "'4Ki' is no size of a huge page"),
        ({"big": "4Ki"}, "'big' is no size of a huge page"),
        ({"2Mi": "3Mi"}, "must be whole pages of 2Mi, not 3Mi"),
        ({"2Mi": "much"}, "must be"),
    ],
)
def test_what_is_none_is_said(value: object, said: str) -> None:
    with pytest.raises(Faults) as raised:
        hugepages(value)
    (fault,) = raised.value.faults
    assert said in fault.message
