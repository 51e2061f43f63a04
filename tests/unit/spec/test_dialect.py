"""Suggestions: what a misspelt key was meant to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec import device, model, parts
from reconciler.spec.dialect import NOT_YET, TRANSLATIONS, VALUES, distance, suggest, translate
from reconciler.spec.fields import Part


def plain_distance(left: str, right: str) -> int:
    """The same edit distance, by its definition."""
    table = {(i, 0): i for i in range(len(left) + 1)} | {(0, j): j for j in range(len(right) + 1)}
    for i, a in enumerate(left, 1):
        for j, b in enumerate(right, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(left), len(right)]


@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.integers(0, 3))
def test_the_distance_is_the_textbook_one_up_to_its_limit(left: str, right: str, limit: int) -> None:
    assert distance(left, right, limit) == min(plain_distance(left, right), limit + 1)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("port", "ports"), ("volums", "volumes"), ("enviroment", "environment"), ("workingDir", "working_dir"),
        ("IMAGE", "image"), ("read-only", "read_only"), ("imgae", "image"), ("xyz", None), ("", None),
        ("z" * 500, None),
    ],
)  # fmt: skip
def test_what_a_key_was_meant_to_be(key: str, meant: str | None) -> None:
    assert suggest(key, model.Container.model_fields) == meant


def models() -> dict[str, type[Part]]:
    return {
        name: found
        for module in (model, parts, device)
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Part) and found is not Part
    }


def test_the_tables_name_models_and_fields_that_exist() -> None:
    known = models()
    assert set(NOT_YET) | set(TRANSLATIONS) <= set(known)
    for name, field in VALUES:
        assert field in {item.alias or key for key, item in known[name].model_fields.items()}


def test_no_key_is_both_a_field_and_refused() -> None:
    for name, found in models().items():
        fields = {item.alias or key for key, item in found.model_fields.items()}
        assert not fields & NOT_YET.get(name, frozenset()), name
        assert not fields & set(TRANSLATIONS.get(name, {})), name
        assert not NOT_YET.get(name, frozenset()) & set(TRANSLATIONS.get(name, {})), name


def test_a_translation_leads_to_a_field_or_to_one_that_comes_later() -> None:
    container = set(model.Container.model_fields) | NOT_YET["Container"]
    for key, answer in TRANSLATIONS["Container"].items():
        if " " not in answer:
            assert answer.partition(".")[0] in container, key
    assert translate("Container", "livenessProbe") == "write 'healthcheck', which is not supported yet"
    assert translate("Container", "mem_limit") == "write 'limits.memory'"
    assert translate("Container", "storage_opt") == "write 'limits.rootfs'"
    assert translate("Container", "image") is None
