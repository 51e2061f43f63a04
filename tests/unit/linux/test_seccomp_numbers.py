"""The tables of system call numbers: beside the kernel's headers on this machine, and against each other."""

import re
from pathlib import Path

import pytest

from reconciler.linux import syscall
from reconciler.linux.seccomp import numbers

TABLES = {"X86_64": numbers.X86_64, "X86": numbers.X86, "AARCH64": numbers.AARCH64, "ARM": numbers.ARM}
_HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")


@pytest.mark.parametrize(("table", "header"), [("X86_64", "unistd_64.h"), ("X86", "unistd_32.h")])
def test_a_table_has_every_call_of_the_headers(table: str, header: str) -> None:
    path = _HEADERS / header
    if not path.exists():
        pytest.skip("no kernel headers for x86 here")
    defined = re.findall(r"^#define __NR_(\w+) (\d+)$", path.read_text(), re.MULTILINE)
    assert len(defined) > 300
    assert {name: TABLES[table].get(name) for name, _ in defined} == {name: int(n) for name, n in defined}


def test_from_424_on_all_tables_agree_and_end_alike() -> None:
    newer = [{name: n for name, n in table.items() if 424 <= n < 1000} for table in TABLES.values()]
    shared = {name: n for name, n in newer[0].items() if name != "memfd_secret"}
    for table in newer:
        assert {name: n for name, n in table.items() if name != "memfd_secret"} == shared
    assert max(shared.values()) == 470


def test_the_calls_that_this_program_makes_have_the_numbers_by_which_it_makes_them() -> None:
    for name, (x86_64, aarch64) in syscall._NUMBERS.items():
        assert (numbers.X86_64[name], numbers.AARCH64[name]) == (x86_64, aarch64), name


def test_every_number_is_there_once_but_for_the_second_name_of_one_call() -> None:
    for name, table in TABLES.items():
        doubled = sorted(call for call, n in table.items() if list(table.values()).count(n) > 1)
        assert doubled == (["arm_sync_file_range", "sync_file_range2"] if name == "ARM" else [])
