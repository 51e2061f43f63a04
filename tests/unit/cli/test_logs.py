"""What `logs` says of a container whose output goes elsewhere."""

import json
from pathlib import Path

import pytest

from reconciler.cli.logs import _refuse_journal, _Source
from reconciler.engine.layout import Layout
from reconciler.engine.logs import log_driver
from reconciler.errors import UsageError

ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    made.container(ID).mkdir(parents=True)
    return made


def write(layout: Layout, driver: str) -> None:
    log = json.dumps({"driver": driver})
    layout.config(ID).write_text(json.dumps({"annotations": {"dev.reconciler.log": log}}))


@pytest.mark.parametrize(("follow", "command"), [(False, "journalctl "), (True, "journalctl -f ")])
def test_a_log_in_the_journal_is_read_by_the_journals_own_reader(
    layout: Layout, follow: bool, command: str
) -> None:
    write(layout, "journald")
    with pytest.raises(UsageError, match="web/db: its log is in the device's journal") as caught:
        _refuse_journal(layout, [_Source("web/db", layout.log(ID), ID)], follow=follow)
    assert caught.value.hint == f"run: {command}CONTAINER_ID_FULL={ID}"


def test_other_logs_are_read_here(layout: Layout) -> None:
    sources = [_Source("web/db", layout.log(ID), ID), _Source("web/old", layout.log(ID), "")]
    _refuse_journal(layout, sources, follow=False)
    for driver in ("file", "none"):
        write(layout, driver)
        assert log_driver(layout, ID) == driver
        _refuse_journal(layout, sources, follow=False)
    layout.config(ID).write_text("[]")
    assert log_driver(layout, ID) == ""
