"""What every test run does: decide by trying what can run here, fail hidden skips in CI, and say what was left out.

Markers are promises about needs: a test marked `kernel`, `cgroup`, `network`, `e2e` or `vm` is skipped with the reason
its probe found. Under `--require-kernel`, or with CI=true, a skip is a failure, unless it begins with "this kernel
lacks": a test that silently never runs is worse than none.
"""

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.e2e import killed
from tests.probes import KERNEL_LACKS, PROBES

# Two busy cores and an emulated guest: a deadline per example would measure the machine, not the code.
settings.register_profile("reconciler", deadline=None, print_blob=True)
settings.register_profile("guest", parent=settings.get_profile("reconciler"), max_examples=10)
settings.load_profile("guest" if os.environ.get("IN_VM") else "reconciler")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that CI=true stands for."""
    parser.addoption(
        "--require-kernel",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail what would be skipped, unless the kernel itself lacks something (default where CI=true)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """End in order on SIGTERM too, fixtures torn down, and remove what a run has left that could not."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        killed.finish()


@pytest.fixture(scope="session")
def patience() -> float:
    """The factor for every time limit in a test: 1, or 10 in the emulated machine."""
    return 10.0 if os.environ.get("IN_VM") else 1.0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture works when the machine cannot do what the test's markers ask for."""
    for marker, probe in PROBES.items():
        if item.get_closest_marker(marker) and (reason := probe()):
            pytest.skip(f"{marker}: {reason}" if not reason.startswith(KERNEL_LACKS) else reason)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the virtual machine first: it runs beside everything else, instead of after it."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a report was skipped, in the words of whoever skipped it."""
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ")


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure, unless it is an expected failure or a fact about the kernel."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = skip_reason(report)
    if not reason.startswith(KERNEL_LACKS):
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped here (--require-kernel or CI=true): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Apply `refuse_skip` to skips of single tests."""
    report = yield
    if item.config.getoption("require_kernel"):
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Apply `refuse_skip` to skips of whole modules."""
    report = yield
    if collector.config.getoption("require_kernel"):
        refuse_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run and why, and what the virtual machine said."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == "virtual machine" and report.when == "call":
                    terminalreporter.section("in the virtual machine")
                    terminalreporter.line(str(value))
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reasons.setdefault(skip_reason(report), []).append(report.nodeid)
    if not reasons:
        return
    terminalreporter.section("could not run here")
    for reason, names in sorted(reasons.items()):
        terminalreporter.line(f"{len(names)} x {reason}")
        for name in names[:3]:
            terminalreporter.line(f"      {name}")
        if len(names) > 3:
            terminalreporter.line(f"      and {len(names) - 3} more")
