"""The metrics: names and types as published, valid in both formats, bounded, quick, and there from zero."""

import re
import shutil
import subprocess
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reconciler.engine.usage import Usage
from reconciler.plan.diff import plan as make_plan
from reconciler.plan.steps import CollectGarbage, CreateContainer, Garbage, Outcome, PullImage, StartContainer
from reconciler.report import status
from reconciler.report.exposition import OPENMETRICS, TEXT, Family, Histogram, encode, negotiate
from reconciler.report.metrics import families
from reconciler.report.tally import Tally
from reconciler.report.telemetry import Process, StoreSizes, Telemetry, Traffic
from reconciler.source.git import Fetch
from reconciler.state.desired import App, Desired, Limits
from reconciler.state.observed import Container as Found
from reconciler.state.observed import Exited, Observed, Previous, Running
from reconciler.state.process import ExitRecord
from reconciler.state.wish import Goal, Wish
from tests.unit.report.test_status import APP, DESIRED, IMAGE, NOW, WANT, found, world


def parse_openmetrics(text: str) -> list[Metric]:
    return list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


USAGE = Usage(1.5, 10, 2, 0.25, 1000, 2000, 900, 800, 1, 3, 5, 6, {"cpu": 0.1, "memory": 0.2, "io": 0.3})
RUNNING = found(Running(42, NOW.boottime - 60, NOW.wall - 60))


def telemetry(
    observed: Observed | None = None, desired: Desired = DESIRED, tally: Tally | None = None, **more: Any
) -> Telemetry:
    observed = observed if observed is not None else world(RUNNING)
    document = status.document(
        desired, observed, make_plan(desired, observed, NOW), NOW, revision="abc", generation=3
    )
    tally = tally if tally is not None else Tally()
    return Telemetry("1.0", "3.11", "6.1", "amd64", "kiosk", "/srv/specs", document, tally.counters(), **more)


def full(observed: Observed | None = None) -> Telemetry:
    tally = Tally()
    tally.outcome(Outcome(PullImage("web", WANT.reference, IMAGE), seconds=3.0))
    tally.turn(
        "changed", {"observe": 0.01, "plan": 0.001}, NOW.wall, observed or world(RUNNING), frozenset({"web"})
    )
    return telemetry(
        observed,
        tally=tally,
        usage={"web/page": USAGE},
        traffic={"web/page": Traffic(1, 2, 3, 4, 5, 6, 7, 8)},
        upper_bytes={"web/page": 4096},
        log_bytes={("web/page", "stdout"): 5, ("web/page", "stderr"): 6},
        volumes={("web", "data"): (1024, False), ("old", "data"): (1, True)},
        volume_limits={("web", "data"): 65536},
        store=StoreSizes({"blobs": 1, "layers": 2}, 5, 10, {"used": 1}, {"used": 2, "unused": 1}),
        requests={("r.example", "2xx"): 4, ("r.example", "404"): 1},
        pulled={("r.example", "origin", "full"): 1000},
        clock_synchronized=True,
        generations={"current": 3, "desired": 4, "last_good": 3},
        registries=frozenset({"r.example"}),
        process=Process(1.25, 40 << 20, 200 << 20, 30, 20000, NOW.wall),
        device_labels={"site": 'a"b\\c\nd'},
    )


def parsed(telemetry: Telemetry) -> dict[str, Metric]:
    return {family.name: family for family in parse_text(encode(families(telemetry)).decode())}


def value(telemetry: Telemetry, metric: str, /, **labels: str) -> float | None:
    found = [
        sample.value
        for family in parse_text(encode(families(telemetry)).decode())
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1
    return found[0] if found else None


PUBLISHED = {
    "reconciler_build_info": "gauge",
    "reconciler_device_info": "gauge",
    "reconciler_source_info": "gauge",
    "reconciler_source_fetch_total": "counter",
    "reconciler_source_fetch_duration_seconds": "histogram",
    "reconciler_source_last_success_timestamp_seconds": "gauge",
    "reconciler_spec_valid": "gauge",
    "reconciler_spec_errors": "gauge",
    "reconciler_reconcile_total": "counter",
    "reconciler_reconcile_duration_seconds": "histogram",
    "reconciler_reconcile_last_success_timestamp_seconds": "gauge",
    "reconciler_reconcile_actions_total": "counter",
    "reconciler_plan_pending_actions": "gauge",
    "reconciler_plan_download_bytes": "gauge",
    "reconciler_app_sync_status": "gauge",
    "reconciler_app_health_status": "gauge",
    "reconciler_app_info": "gauge",
    "reconciler_app_suspended": "gauge",
    "reconciler_drift_detected_total": "counter",
    "reconciler_generation": "gauge",
    "reconciler_container_info": "gauge",
    "reconciler_container_state": "gauge",
    "reconciler_container_health": "gauge",
    "reconciler_container_restarts_total": "counter",
    "reconciler_container_ready": "gauge",
    "reconciler_container_desired": "gauge",
    "reconciler_pull_total": "counter",
    "reconciler_pull_bytes_total": "counter",
    "reconciler_pull_duration_seconds": "histogram",
    "reconciler_registry_requests_total": "counter",
    "reconciler_image_verify_total": "counter",
    "reconciler_store_bytes": "gauge",
    "reconciler_store_free_bytes": "gauge",
    "reconciler_store_size_bytes": "gauge",
    "reconciler_store_images": "gauge",
    "reconciler_store_blobs": "gauge",
    "reconciler_gc_runs_total": "counter",
    "reconciler_gc_reclaimed_bytes_total": "counter",
    "reconciler_gc_removed_total": "counter",
    "reconciler_volume_used_bytes": "gauge",
    "reconciler_volume_limit_bytes": "gauge",
    "reconciler_log_bytes_total": "counter",
    "reconciler_clock_synchronized": "gauge",
    "reconciler_watchdog_stalls_total": "counter",
    "container_cpu_usage_seconds_total": "counter",
    "container_cpu_cfs_periods_total": "counter",
    "container_cpu_cfs_throttled_periods_total": "counter",
    "container_cpu_cfs_throttled_seconds_total": "counter",
    "container_memory_working_set_bytes": "gauge",
    "container_memory_rss": "gauge",
    "container_memory_usage_bytes": "gauge",
    "container_memory_max_usage_bytes": "gauge",
    "container_oom_events_total": "counter",
    "container_processes": "gauge",
    "container_fs_usage_bytes": "gauge",
    "container_fs_reads_bytes_total": "counter",
    "container_fs_writes_bytes_total": "counter",
    "container_network_receive_bytes_total": "counter",
    "container_network_receive_packets_total": "counter",
    "container_network_receive_errors_total": "counter",
    "container_network_receive_packets_dropped_total": "counter",
    "container_network_transmit_bytes_total": "counter",
    "container_network_transmit_packets_total": "counter",
    "container_network_transmit_errors_total": "counter",
    "container_network_transmit_packets_dropped_total": "counter",
    "container_start_time_seconds": "gauge",
    "container_spec_memory_limit_bytes": "gauge",
    "container_pressure_cpu_waiting_seconds_total": "counter",
    "container_pressure_memory_waiting_seconds_total": "counter",
    "container_pressure_io_waiting_seconds_total": "counter",
    "process_cpu_seconds_total": "counter",
    "process_resident_memory_bytes": "gauge",
    "process_open_fds": "gauge",
}


def test_every_published_name_is_there_with_its_type() -> None:
    text = encode(families(full())).decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: types.get(name) for name in PUBLISHED} == PUBLISHED


def test_openmetrics_is_valid_and_says_the_same() -> None:
    text = encode(families(full()), openmetrics=True).decode()
    assert text.endswith("# EOF\n")
    samples = {
        (s.name, *sorted(s.labels.items())): s.value for f in parse_openmetrics(text) for s in f.samples
    }
    plain = {
        (s.name, *sorted(s.labels.items())): s.value
        for f in parse_text(encode(families(full())).decode())
        for s in f.samples
    }
    assert samples == plain


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=encode(families(full())), capture_output=True, check=False
    )
    # cAdvisor's own name for it has no unit; dashboards look for that name.
    complaints = [line for line in done.stderr.decode().splitlines() if "container_memory_rss" not in line]
    assert complaints == []
    assert done.returncode in (0, 3)


def test_counters_are_there_from_zero() -> None:
    fresh = telemetry(Observed("boot"), Desired({}))
    assert value(fresh, "reconciler_reconcile_total", result="error") == 0
    assert value(fresh, "reconciler_source_fetch_total", result="error") == 0
    assert value(fresh, "reconciler_reconcile_actions_total", action="pull", result="error") == 0
    assert value(fresh, "reconciler_plan_pending_actions", action="create") == 0
    assert value(fresh, "reconciler_gc_runs_total", result="error") == 0
    assert value(fresh, "reconciler_image_verify_total", result="bad") == 0
    assert value(fresh, "reconciler_source_last_success_timestamp_seconds") == 0
    observed = world(RUNNING)
    tally = Tally()
    tally.turn("unchanged", {}, NOW.wall, observed, frozenset({"web"}))
    running = telemetry(observed, tally=tally)
    assert value(running, "reconciler_container_restarts_total", reason="oom", container="page") == 0
    assert value(running, "reconciler_drift_detected_total", app="web", kind="missing") == 0
    waiting = telemetry(world(), registries=frozenset({"r.example"}))
    assert value(waiting, "reconciler_container_restarts_total", reason="oom", container="page") == 0
    for code in ("401", "404", "429", "5xx"):
        assert value(waiting, "reconciler_registry_requests_total", registry="r.example", code=code) == 0
    assert value(waiting, "reconciler_pull_total", registry="r.example", result="error") == 0
    assert (
        value(waiting, "reconciler_pull_bytes_total", registry="r.example", source="origin", kind="full") == 0
    )
    assert "reconciler_pull_duration_seconds" in parsed(waiting)


def test_what_a_container_wrote_is_told_by_stream() -> None:
    assert value(full(), "reconciler_log_bytes_total", app="web", container="page", stream="stderr") == 6
    for kind, number in (("current", 3), ("desired", 4), ("last_good", 3)):
        assert value(full(), "reconciler_generation", kind=kind) == number


def test_a_loop_that_does_not_come_round_is_counted_once_a_stall() -> None:
    tally = Tally()
    tally.alive(0.0, 30.0, turn=False)  # nobody knows yet when it began
    tally.alive(100.0, 30.0, turn=True)
    tally.alive(130.0, 30.0, turn=True)
    assert tally.counters().stalls == 0
    for moment in (161.0, 200.0):  # it hangs, and somebody looks
        tally.alive(moment, 30.0, turn=False)
    tally.alive(300.0, 30.0, turn=True)
    assert tally.counters().stalls == 1
    tally.alive(331.0, 30.0, turn=True)  # it took long, and nobody looked
    assert tally.counters().stalls == 2


def test_a_directory_that_reads_the_same_is_unchanged() -> None:
    tally = Tally()
    tally.read("a", 0.01, 100.0, problem=False)
    tally.read("a", 0.01, 200.0, problem=False)
    tally.read("", 0.01, 300.0, problem=True)
    tally.read("b", 0.01, 400.0, problem=False)
    counters = tally.counters()
    assert counters.fetches == {"success": 2, "rewound": 0, "error": 1, "unchanged": 1}
    assert sum(counters.fetch_seconds.counts) == 4
    assert counters.last_fetch == 400.0


def test_states_are_one_series_each_and_exactly_one_is_set() -> None:
    families_ = parsed(full())
    for name, label in (
        ("reconciler_app_sync_status", "status"),
        ("reconciler_app_health_status", "status"),
        ("reconciler_container_state", "state"),
        ("reconciler_container_health", "status"),
    ):
        samples = families_[name].samples
        assert len({sample.labels[label] for sample in samples}) == len(samples) <= 6
        assert sum(sample.value for sample in samples) == 1


def test_an_app_of_which_people_keep_a_container_stopped_is_suspended() -> None:
    held = replace(WANT, wish=Wish(Goal.STOPPED, reason="stopped by hand"))
    desired = Desired({"web": replace(APP, containers={"page": held})})
    assert value(telemetry(world(RUNNING)), "reconciler_app_suspended", app="web") == 0
    assert value(telemetry(world(), desired), "reconciler_app_suspended", app="web") == 1


def test_a_containers_series_carry_cadvisors_labels_and_vanish_with_it() -> None:
    assert (
        value(full(), "container_memory_rss", name="web/page", app="web", container="page", replica="1")
        == 800
    )
    gone = full(world())
    gone = replace(gone, status={**gone.status, "items": []})
    text = encode(families(gone)).decode()
    assert "container_memory_rss" not in text
    assert "reconciler_container_" not in text


def test_limits_are_told_in_the_kernels_units() -> None:
    settings = replace(WANT.settings, limits=Limits(cpus=1500, memory=1 << 28, rootfs=1 << 26))
    desired = Desired({"web": replace(APP, containers={"page": replace(WANT, settings=settings)})})
    found_ = telemetry(world(replace(RUNNING, settings=settings)), desired)
    assert value(found_, "container_spec_cpu_quota") == 150_000
    assert value(found_, "container_spec_cpu_period") == 100_000
    assert value(found_, "container_spec_memory_limit_bytes") == 1 << 28
    assert value(found_, "container_fs_limit_bytes") == 1 << 26


def test_what_is_not_counted_here_is_left_out() -> None:
    text = encode(families(telemetry(usage={"web/page": Usage(cpu_seconds=1.0)}))).decode()
    assert "container_cpu_usage_seconds_total" in text
    assert "container_memory_rss" not in text


def test_of_each_declared_container_is_told_how_many_are_wanted() -> None:
    desired = Desired({"web": replace(APP, replicas={"page": 1, "spare": 3, "none": 0})})
    for name, count in (("page", 1), ("spare", 3), ("none", 0)):
        told = value(telemetry(world(RUNNING), desired), "reconciler_container_desired", container=name)
        assert told == count, name


def test_a_scrape_of_fifty_containers_is_small_and_quick() -> None:
    containers = {}
    observed: dict[str, tuple[Found, ...]] = {}
    for number in range(50):
        name = f"c{number}"
        containers[name] = replace(WANT, name=name)
        observed[f"web/{name}"] = (replace(RUNNING, name=name),)
    desired = Desired({"web": App("web", "web.yaml", "d", containers)})
    one, many = full(), full()
    document = status.document(
        desired, replace(world(), containers=observed), make_plan(DESIRED, world(), NOW), NOW
    )
    tally = Tally()
    tally.turn("unchanged", {}, NOW.wall, replace(world(), containers=observed), frozenset({"web"}))
    many = replace(
        many,
        status={**document, "items": document["items"]},
        counters=tally.counters(),
        usage=dict.fromkeys(observed, USAGE),
        traffic=dict.fromkeys(observed, Traffic()),
        log_bytes={(name, stream): 1 for name in observed for stream in ("stdout", "stderr")},
    )
    lines = [line for line in encode(families(many)).decode().splitlines() if not line.startswith("#")]
    base = [line for line in encode(families(one)).decode().splitlines() if not line.startswith("#")]
    assert (len(lines) - len(base)) / 49 <= 70
    costs = []
    for _ in range(5):
        began = time.thread_time()
        encode(families(many))
        costs.append(time.thread_time() - began)
    assert min(costs) < 0.02  # about 5 ms on a quiet machine


# --- counting ------------------------------------------------------------------------------------------------------


def ended(*, oom: bool) -> Previous:
    record = ExitRecord(None, 9, oom, 1.0, 1.0, 2.0, 2.0, "boot")
    return Previous(WANT.fingerprint, record, 1, 1)


def turn(tally: Tally, observed: Observed) -> None:
    tally.turn("changed", {"observe": 0.002}, NOW.wall, observed, frozenset({"web"}))


def test_restarts_are_counted_by_reason() -> None:
    tally = Tally()
    turn(tally, world(RUNNING))
    turn(tally, world(previous=ended(oom=True)))
    turn(tally, world(replace(RUNNING, id="2" * 32), previous=ended(oom=True)))
    turn(tally, world(replace(RUNNING, id="3" * 32), previous=ended(oom=False)))
    turn(tally, world(replace(RUNNING, id="4" * 32, fingerprint="new"), previous=ended(oom=False)))
    turn(tally, world(replace(RUNNING, id="4" * 32, fingerprint="new")))
    assert tally.counters().restarts["web/page"] == {
        "exit": 1,
        "oom": 1,
        "unhealthy": 0,
        "manual": 0,
        "update": 1,
    }
    turn(tally, world())
    assert tally.counters().restarts == {}


def test_outcomes_are_counted_by_action_and_result() -> None:
    tally = Tally()
    tally.outcome(Outcome(CreateContainer(WANT)))
    tally.outcome(Outcome(CreateContainer(WANT, attempt=1, restarts=2)))
    tally.outcome(Outcome(StartContainer("web", "page"), error="no"))
    tally.outcome(Outcome(PullImage("web", WANT.reference, IMAGE), error="down", seconds=0.5))
    tally.outcome(
        Outcome(CollectGarbage((Garbage("layer", "ab", 100, "unused"), Garbage("blob", "cd", 5, "unused"))))
    )
    counters = tally.counters()
    assert counters.actions["create", "success"] == 1
    assert counters.actions["restart", "success"] == 1
    assert counters.actions["start", "error"] == 1
    assert counters.pulls == {("r.example", "success"): 0, ("r.example", "error"): 1}
    assert counters.pull_seconds["r.example"].counts[0] == 1
    assert (counters.gc_bytes, counters.gc_removed["layer"], counters.gc_runs["success"]) == (105, 1, 1)


def test_fetches_and_turns_are_timed() -> None:
    tally = Tally()
    tally.fetch(Fetch("success", 0.3, 100.0))
    tally.fetch(Fetch("error", 20.0, 200.0, "down"))
    turn(tally, world(RUNNING))
    tally.lane(2.0)
    counters = tally.counters()
    assert (counters.fetches["success"], counters.fetches["error"], counters.last_fetch) == (1, 1, 100.0)
    assert counters.fetch_seconds.counts == (0, 1, 0, 0, 0, 1, 0)
    assert counters.turn_seconds["observe"].total == pytest.approx(0.002)
    assert sum(counters.turn_seconds["apply"].counts) == 1
    tally.turn("error", {}, 999.0, world(), frozenset())
    assert tally.counters().last_turn == NOW.wall


# --- the formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
    ],
)
def test_the_format_is_negotiated(accept: str, content_type: str) -> None:
    assert negotiate(accept) == (content_type, content_type == OPENMETRICS)


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
)


@given(TEXTS, TEXTS, st.floats(allow_nan=False))
def test_a2_whatever_is_in_a_label_both_formats_stay_valid(label: str, text: str, number: float) -> None:
    family = Family("x_y", "gauge", text.strip(), [((("a", label), ("b", "")), number)])
    (plain,) = parse_text(encode([family]).decode())
    assert plain.samples[0].labels["a"] == label
    assert plain.samples[0].value == number
    (openmetrics,) = parse_openmetrics(encode([family], openmetrics=True).decode())
    assert openmetrics.samples[0].labels["a"] == label


@given(st.lists(st.floats(0, 1e9)))
def test_a_histogram_counts_everything_once(values: list[float]) -> None:
    histogram = Histogram.empty((0.1, 1.0, 60.0))
    for number in values:
        histogram = histogram.observe(number)
    assert sum(histogram.counts) == len(values)
    assert histogram.total == pytest.approx(sum(values))
    (family,) = parse_openmetrics(
        encode([Family("x", "histogram", "x", [((), histogram)])], openmetrics=True).decode()
    )
    buckets = [sample.value for sample in family.samples if sample.name == "x_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == len(values)


@given(
    st.lists(
        st.builds(
            lambda phase, name: replace(found(phase), name=name),
            st.one_of(
                st.builds(Running, st.just(1), st.floats(-1e9, 1e9), st.floats(-1e12, 1e12)),
                st.builds(
                    lambda code, signal: Exited(
                        ExitRecord(code, signal, False, None, None, 0.0, 0.0, "boot")
                    ),
                    st.none() | st.integers(0, 255),
                    st.none() | st.integers(1, 64),
                ),
            ),
            st.sampled_from(["page", "a.2", "b"]),
        ),
        max_size=4,
        unique_by=lambda container: container.name,
    ),
    st.builds(Usage, cpu_seconds=st.none() | st.floats(0, 1e9), memory=st.none() | st.integers(0, 2**63)),
)
def test_metrics_never_raise_and_are_always_valid(containers: list[Found], usage: Usage) -> None:
    observed = replace(world(), containers={f"web/{c.name}": (c,) for c in containers})
    tally = Tally()
    turn(tally, observed)
    found_ = telemetry(observed, tally=tally, usage={name: usage for name in observed.containers})
    for openmetrics in (False, True):
        text = encode(families(found_), openmetrics=openmetrics).decode()
        list((parse_openmetrics if openmetrics else parse_text)(text))
