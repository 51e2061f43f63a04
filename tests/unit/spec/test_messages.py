"""Every message, with the line and the carets people see, against golden files in bad/.

`UPDATE_GOLDEN=1 pytest tests/unit/spec/test_messages.py` rewrites them; the diff is what a reviewer reads.
"""

import os
from pathlib import Path

import pytest

from reconciler.config import load_device
from reconciler.errors import InvalidSpecError
from reconciler.spec.load import Loaded, load
from reconciler.spec.marks import summary
from reconciler.spec.terms import Terms

BAD = Path(__file__).parent / "bad"


def same_as_golden(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def rendered(loaded: Loaded) -> str:
    blocks = [str(problem) for problem in loaded.problems]
    usable = f"usable: {', '.join(loaded.apps) or 'none'}"
    return "\n".join([*blocks, summary(loaded.problems), usable]) + "\n"


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_file_is_explained(path: Path) -> None:
    loaded = load({f"apps/{path.name}": path.read_bytes()}, _no_file, terms=Terms(binds=("/srv/photos",)))
    same_as_golden(path.with_suffix(".txt"), rendered(loaded))


@pytest.mark.parametrize("folder", sorted((BAD / "across").iterdir()), ids=lambda path: path.name)
def test_what_is_wrong_between_files_is_explained_in_each(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.yaml")}

    def read_config(name: str) -> bytes:
        return (folder / name).read_bytes()

    same_as_golden(folder / "expected.txt", rendered(load(files, read_config)))


@pytest.mark.parametrize("path", sorted((BAD / "device").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_device_file_is_explained(path: Path) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_device(f"/etc/reconciler/{path.name}", path.read_bytes())
    same_as_golden(path.with_suffix(".txt"), f"{caught.value}\n")


def test_no_golden_file_is_left_over() -> None:
    for text in [*BAD.glob("*.txt"), *(BAD / "device").glob("*.txt")]:
        assert text.with_suffix(".yaml").exists(), text


def test_the_words_of_the_library_never_reach_the_user() -> None:
    for text in BAD.rglob("*.txt"):
        content = text.read_text(encoding="utf-8").lower()
        for word in (
            "pydantic",
            "http://errors",
            "input should",
            "field required",
            "value error",
            "extra inputs",
        ):
            assert word not in content, text


def _no_file(name: str) -> bytes:
    raise FileNotFoundError(name)
