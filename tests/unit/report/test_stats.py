"""`stats`: rates from two looks, and dashes for what is not counted."""

from reconciler.engine.traffic import Traffic
from reconciler.engine.usage import Usage
from reconciler.report.stats import Sample, Subject, fields, item

WEB = Subject("web/page", "ab" * 16, 7, 64 << 20, 100)


def test_rates_are_per_cent_of_the_time_between_two_looks() -> None:
    before = Sample(10.0, Usage(cpu_seconds=1.0, pressure={"cpu": 0.5, "io": 1.0}))
    usage = Usage(
        cpu_seconds=4.0,
        memory=40 << 20,
        memory_working_set=32 << 20,
        processes=3,
        read_bytes=10,
        written_bytes=0,
        pressure={"cpu": 0.6, "io": 1.0},
    )
    row = item(WEB, before, Sample(12.0, usage, Traffic(2048, 0)), total_memory=1 << 40)
    assert row["cpu_percent"] == 150.0
    assert (row["memory"], row["memory_percent"]) == (32 << 20, 50.0)
    assert row["pressure"] == {"cpu": 5.0, "memory": None, "io": 0.0}
    shown = fields(row)
    assert shown["CPUPerc"] == "150.00%"
    assert shown["MemUsage"] == "32.0MiB / 64.0MiB"
    assert shown["NetIO"] == "2.00KiB / 0B"
    assert shown["Pressure"] == "5.0% / - / 0.0%"


def test_what_is_not_counted_is_a_dash_and_never_zero() -> None:
    row = item(WEB, None, None, total_memory=1 << 30)
    shown = fields(row)
    assert row["memory"] is None
    assert [shown[key] for key in ("CPUPerc", "MemPerc", "PIDs", "Pressure")] == ["-"] * 4
    assert [shown[key] for key in ("NetIO", "BlockIO")] == ["- / -"] * 2


def test_without_a_limit_the_devices_memory_is_the_limit() -> None:
    for limit in (None, 1 << 50):
        subject = Subject("a/b", "00", 1, limit, None)
        row = item(subject, None, Sample(1.0, Usage(memory=1 << 29)), total_memory=1 << 30)
        assert (row["memory_limit"], row["memory_percent"]) == (1 << 30, 50.0)
        assert row["cpu_percent"] is None


def test_a_counter_that_went_back_is_no_negative_rate() -> None:
    now = Sample(2.0, Usage(cpu_seconds=1.0))
    assert item(WEB, Sample(1.0, Usage(cpu_seconds=5.0)), now, total_memory=1)["cpu_percent"] == 0.0
    assert item(WEB, now, now, total_memory=1)["cpu_percent"] is None
