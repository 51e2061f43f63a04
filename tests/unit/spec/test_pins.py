"""Images in spec files, found with their places, and replaced there: everything else stays, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec.pins import Use, read, rewritten, texts
from reconciler.spec.yaml12 import compose, plain

SPEC = """\
# the web   \r
apiVersion: reconciler/v1
kind: App
name: web
containers:
  # first: image: r.example/comment:1
  b: {image: r.example/b:1, command: [echo, "image: r.example/b:1"]}  # and why
  a:
    image:   "r.example/a:2"   # quoted
    environment: {image: r.example/none:1}
  c:
    command: [x]
    image: 'r.example/c@sha256:%s'
jobs:
  d: {image: r.example/b:1}
x-note: {image: r.example/none:1}
""" % ("0" * 64)


def test_images_are_found_where_they_are_and_nowhere_else() -> None:
    file = read("web.yaml", SPEC.encode())
    assert [(use.who, use.text, use.span.line) for use in file.uses] == [
        ("web/b", "r.example/b:1", 7),
        ("web/a", "r.example/a:2", 9),
        ("web/c", f"r.example/c@sha256:{'0' * 64}", 13),
        ("web/d", "r.example/b:1", 15),
    ]
    assert texts([file, file]) == ("r.example/b:1", "r.example/a:2", f"r.example/c@sha256:{'0' * 64}")


def test_only_the_reference_changes() -> None:
    file = read("web.yaml", SPEC.encode())
    changes = {use: f"{use.text}@new" for use in file.uses if "@" not in use.text}
    after, left = rewritten(file, changes)
    assert left == ()
    before_lines, after_lines = SPEC.split("\n"), after.split("\n")
    changed = [n for n, (a, b) in enumerate(zip(before_lines, after_lines, strict=True), 1) if a != b]
    assert changed == [7, 9, 15]
    assert (
        after_lines[6]
        == '  b: {image: r.example/b:1@new, command: [echo, "image: r.example/b:1"]}  # and why'
    )
    assert after_lines[8] == '    image:   "r.example/a:2@new"   # quoted'


@pytest.mark.parametrize(
    "image",
    [
        '"r.example/\\x61:1"',
        '"r.example/\\\n        a:1"',
        ">-\n        r.example/a:1",
        "|-\n        r.example/a:1",
    ],
)
def test_what_is_spelled_with_escapes_or_over_lines_is_left_and_said(image: str) -> None:
    file = read("x.yaml", f"name: x\ncontainers:\n  a:\n    image: {image}\n".encode())
    (use,) = file.uses
    assert use.text == "r.example/a:1"
    after, left = rewritten(file, {use: "r.example/a:1@new"})
    assert left == (use,)
    assert after == file.source.text


def test_an_image_behind_an_anchor_is_changed_once() -> None:
    text = "name: x\ncontainers:\n  a: {image: &it r.example/a:1}\n  b: {image: *it}\n"
    file = read("x.yaml", text.encode())
    (use,) = file.uses
    assert rewritten(file, {use: "new"}) == (text.replace("r.example/a:1", "new"), ())


@pytest.mark.parametrize("data", [b"a: [", b"\xff", b"a: 1\na: 2\n", b"\xef\xbb\xbfname: \xff"])
def test_what_is_no_yaml_has_problems_and_no_images(data: bytes) -> None:
    file = read("x.yaml", data)
    assert file.problems
    assert file.uses == ()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"containers: 3", b"containers: {a: 3, b: {image: [1]}}", b"jobs: []"]
)
def test_what_is_no_app_has_no_images(data: bytes) -> None:
    assert read("x.yaml", data).uses == ()


_WORD = st.text("abcxyz0189:/.-@é\u4e2d", min_size=1, max_size=12)


@given(
    st.lists(st.tuples(_WORD, st.sampled_from(["plain", "'", '"', "flow"])), min_size=1, max_size=6), _WORD
)
def test_a_rewritten_file_means_the_same_but_for_its_images(images: list[tuple[str, str]], new: str) -> None:
    lines = ["# é 中 a comment", "name: n", "containers:"]
    for number, (image, how) in enumerate(images):
        spelled = f"{how}r/{image}{how}" if how in "'\"" else f"r/{image.replace(':', '')}"
        lines.append(
            f"  c{number}: {{image: {spelled}}} # {image}"
            if how == "flow"
            else f"  c{number}:\n    image: {spelled}"
        )
    text = "\n".join(lines)
    file = read("x.yaml", text.encode())
    assert len(file.uses) == len(images)
    wanted = f"r/{new.replace(':', '')}"
    after, left = rewritten(file, dict.fromkeys(file.uses, wanted))
    assert left == ()
    root, _, problems = compose("x.yaml", after.encode())
    assert problems == []
    assert root is not None
    value = plain(root)
    assert value == {"name": "n", "containers": {f"c{n}": {"image": wanted} for n in range(len(images))}}


def test_a_use_is_a_value() -> None:
    (use,) = read("x.yaml", b"containers: {a: {image: r/a}}").uses
    assert use == Use("?/a", "r/a", use.span)
