"""A state directory is made once, whoever else makes it at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from reconciler.engine import instance
from reconciler.engine.layout import Layout

AT_ONCE = 8


def test_all_who_make_it_at_once_get_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    start = Barrier(AT_ONCE)

    def prepare(layout: Layout) -> tuple[str, bytes]:
        start.wait()
        return instance.prepare(layout), layout.key.read_bytes()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for turn in range(10):
            layout = Layout(Path(f"{turn}/state"), Path(f"{turn}/run"))
            assert len(set(pool.map(prepare, [layout] * AT_ONCE))) == 1
            assert instance.read_id(layout) == instance.prepare(layout)
            assert not [path for path in layout.state.iterdir() if path.name.startswith(".")]
