"""The switch that rewrites expectations: the diff is what the reviewer reads."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-scenarios`, known where this directory is named: `pytest tests/scenarios --update-scenarios`."""
    parser.addoption(
        "--update-scenarios", action="store_true", help="write what is planned into the scenarios"
    )
