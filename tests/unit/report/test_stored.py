"""What `inspect` says of an image, whatever its config is."""

from dataclasses import replace

import pytest

from reconciler.report import stored
from tests.values import IMAGES


def test_each_layer_is_told_packed_and_unpacked_and_a_missing_one_leaves_the_image_incomplete() -> None:
    image = IMAGES[0]
    whole = stored.image(image, {}, names=["r.example/a:1"], users=[], sizes=[7] * len(image.layers))
    assert (whole["Size"], whole["Reconciler"]["Complete"]) == (7 * len(image.layers), True)
    assert [item["ChainID"] for item in whole["Reconciler"]["Unpacked"]] == [
        str(layer.chain_id) for layer in image.layers
    ]
    part = stored.image(image, {}, names=[], users=[], sizes=[None] * len(image.layers))
    assert (part["Size"], part["Reconciler"]["Complete"]) == (0, False)
    assert {item["Size"] for item in part["Reconciler"]["Unpacked"]} == {None}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, []),
        ("text", []),
        ([1, None, []], []),
        (
            [
                {"created": "2024-01-01T00:00:00Z", "created_by": "RUN x", "empty_layer": True},
                {"created_by": 3},
            ],
            [("2024-01-01T00:00:00Z", "RUN x", True), ("0001-01-01T00:00:00Z", "3", False)],
        ),
    ],
)
def test_the_history_is_told_as_far_as_it_has_a_form(
    history: object, expected: list[tuple[str, str, bool]]
) -> None:
    image = replace(IMAGES[0], layers=())
    told = stored.image(image, {"history": history}, names=[], users=[], sizes=[])
    steps = told["Reconciler"]["History"]
    assert [(step["Created"], step["CreatedBy"], step["Empty"]) for step in steps] == expected
