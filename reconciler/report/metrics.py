"""What /metrics says: one turn's status document and the counters, as metric families.

Pure, total and bounded: it walks no disk, asks no kernel, raises for no state of the device, and has at most 70 series
per container. Names, types and labels are a published interface: a dashboard or an alert somewhere uses each. Resource
series have cAdvisor's names, so that existing dashboards work.
"""

from collections.abc import Iterator

from reconciler.report.action import ACTIONS
from reconciler.report.container import COUNTED_AS, STATES
from reconciler.report.exposition import Family, Labels
from reconciler.report.resources import (
    Container,
    Sample,
    counter,
    full_name,
    gauge,
    labels_of,
    resource_families,
)
from reconciler.report.status import HEALTH, SYNC
from reconciler.report.tally import DRIFT, NO_PULL, RESTARTS, RESULTS
from reconciler.report.telemetry import Process, Telemetry

STREAMS = ("stdout", "stderr")
_ARRIVALS = (
    ("origin", "full"),
    ("origin", "resumed"),
    ("mirror", "full"),
    ("mirror", "resumed"),
    ("peer", "full"),
    ("peer", "resumed"),
    ("bundle", "full"),
)
_CODES = ("2xx", "401", "404", "429", "4xx", "5xx", "none")  # none: there was no answer
CONTAINER_HEALTH = ("healthy", "unhealthy", "starting", "none")


def families(telemetry: Telemetry) -> Iterator[Family]:
    """Every metric family of this moment; a family without samples is left out by the encoder."""
    containers = [container for item in telemetry.status["items"] for container in item["containers"]]
    yield from _about(telemetry)
    yield from _source(telemetry)
    yield from _reconcile(telemetry)
    yield from _apps(telemetry)
    yield from _containers(telemetry, containers)
    yield from resource_families(telemetry, containers)
    yield from _images(telemetry)
    yield from _store(telemetry)
    if telemetry.process is not None:
        yield from _process(telemetry.process)


def _one(value: float | None, **labels: str) -> list[Sample]:
    """One sample, or none where the value is not known."""
    return [] if value is None else [(tuple(labels.items()), value)]


def _states(names: tuple[str, ...], current: str, label: str, labels: Labels = ()) -> Iterator[Sample]:
    """One sample per possible state, 1 for the current one."""
    for name in names:
        yield (*labels, (label, name)), int(name == current)


# --- device, source, loop ------------------------------------------------------------------------------------------


def _about(t: Telemetry) -> Iterator[Family]:
    yield gauge(
        "reconciler_build_info",
        "The program and what it runs on.",
        _one(1, version=t.version, python=t.python, kernel=t.kernel, arch=t.architecture),
    )
    labels = (("device", t.device), *sorted(t.device_labels.items()))
    yield gauge("reconciler_device_info", "The device and its labels.", [(labels, 1)])
    clock = None if t.clock_synchronized is None else int(t.clock_synchronized)
    yield gauge("reconciler_clock_synchronized", "Whether the kernel's clock is synchronized.", _one(clock))
    yield counter(
        "reconciler_watchdog_stalls_total",
        "How often the loop did not come round for three intervals.",
        _one(t.counters.stalls),
    )


def _source(t: Telemetry) -> Iterator[Family]:
    counters, source = t.counters, t.source
    yield gauge(
        "reconciler_source_info",
        "Where the specs come from, and the revision that is wanted now.",
        _one(1, source=source, revision=t.status["revision"], branch=t.branch),
    )
    yield counter(
        "reconciler_source_fetch_total",
        "Looks at the source.",
        [((("source", source), ("result", result)), count) for result, count in counters.fetches.items()],
    )
    yield Family(
        "reconciler_source_fetch_duration_seconds",
        "histogram",
        "How long a look at the source took.",
        [((("source", source),), counters.fetch_seconds)],
    )
    yield gauge(
        "reconciler_source_last_success_timestamp_seconds",
        "When the source could last be read; 0 if never.",
        _one(counters.last_fetch, source=source),
    )
    valid = [
        ((("app", item["name"]),), int(item["wanted"] and not item["stale"]))
        for item in t.status["items"]
        if item["wanted"] or item["stale"]
    ]
    yield gauge("reconciler_spec_valid", "Whether the app's newest spec could be used.", valid)
    yield gauge("reconciler_spec_errors", "Errors in the specs as they are now.", _one(t.spec_errors))


def _reconcile(t: Telemetry) -> Iterator[Family]:
    counters, status = t.counters, t.status
    yield counter(
        "reconciler_reconcile_total",
        "Turns of the loop.",
        [((("result", result),), count) for result, count in counters.turns.items()],
    )
    yield Family(
        "reconciler_reconcile_duration_seconds",
        "histogram",
        "How long the phases of a turn took; apply is one app's steps.",
        [((("phase", phase),), seconds) for phase, seconds in counters.turn_seconds.items()],
    )
    yield gauge(
        "reconciler_reconcile_last_success_timestamp_seconds",
        "When a turn last came to its end; 0 if never.",
        _one(counters.last_turn),
    )
    yield counter(
        "reconciler_reconcile_actions_total",
        "Steps performed.",
        [((("action", a), ("result", r)), count) for (a, r), count in counters.actions.items()],
    )
    pending = {**dict.fromkeys(ACTIONS, 0), **status.get("pending", {})}
    yield gauge(
        "reconciler_plan_pending_actions",
        "Steps still to be performed; all 0 when converged.",
        [((("action", action),), count) for action, count in pending.items()],
    )
    yield gauge("reconciler_plan_download_bytes", "Bytes still to be fetched.", _one(t.download_bytes))
    yield gauge(
        "reconciler_generation",
        "Number of the generation: applied last, wanted now, and the last that came up whole.",
        [((("kind", kind),), number) for kind, number in t.generations.items()],
    )


# --- apps and containers -------------------------------------------------------------------------------------------


def _apps(t: Telemetry) -> Iterator[Family]:
    items = t.status["items"]
    yield gauge(
        "reconciler_app_sync_status",
        "Whether the app is as its spec wants it.",
        [s for item in items for s in _states(SYNC, item["sync"], "status", (("app", item["name"]),))],
    )
    yield gauge(
        "reconciler_app_health_status",
        "How the app is.",
        [s for item in items for s in _states(HEALTH, item["health"], "status", (("app", item["name"]),))],
    )
    yield gauge(
        "reconciler_app_info",
        "The spec that the app comes from, and the generation.",
        [
            (
                (
                    ("app", item["name"]),
                    ("revision", t.status["revision"][:12]),
                    ("generation", str(t.status["generation"])),
                ),
                1,
            )
            for item in items
        ],
    )
    yield gauge(
        "reconciler_app_suspended",
        "Whether people keep a container of the app stopped by hand.",
        [((("app", item["name"]),), int(item["health"] == "suspended")) for item in items],
    )
    names = {item["name"] for item in items}
    yield counter(
        "reconciler_drift_detected_total",
        "Drift that was found and repaired.",
        [
            ((("app", app), ("kind", kind)), t.counters.drift.get((app, kind), 0))
            for app in sorted(names)
            for kind in DRIFT
        ],
    )


def _counted_as(state: str) -> str:
    return COUNTED_AS.get(state, state)


def _containers(t: Telemetry, containers: list[Container]) -> Iterator[Family]:
    labelled = [(labels_of(container), container) for container in containers]
    yield gauge(
        "reconciler_container_info",
        "The image that the container is wanted with.",
        [((*labels, ("image", c["image"]), ("digest", c["digest"])), 1) for labels, c in labelled],
    )
    yield gauge(
        "reconciler_container_state",
        "What the container is doing.",
        [s for labels, c in labelled for s in _states(STATES, _counted_as(str(c["state"])), "state", labels)],
    )
    yield gauge(
        "reconciler_container_health",
        "What the container's health check says; none without one.",
        [s for labels, c in labelled for s in _states(CONTAINER_HEALTH, c["health"], "status", labels)],
    )
    yield counter(
        "reconciler_container_restarts_total",
        "Restarts since the agent started, by reason.",
        [
            ((*labels, ("reason", reason)), t.counters.restarts.get(full_name(c), {}).get(reason, 0))
            for labels, c in labelled
            for reason in RESTARTS
        ],
    )
    yield gauge(
        "reconciler_container_last_exit_code",
        "The code with which the container last ended, 128 and more for a signal.",
        [(labels, c["last_exit_code"]) for labels, c in labelled if c["last_exit_code"] is not None],
    )
    yield gauge(
        "reconciler_container_ready",
        "Whether the container serves.",
        [(labels, int(c["ready"])) for labels, c in labelled],
    )
    wanted: dict[Labels, int] = {}
    for labels, c in labelled:
        wanted[labels[:2]] = wanted.get(labels[:2], 0) + int(c["wanted"])
    for item in t.status["items"]:
        wanted |= {(("app", item["name"]), ("container", c)): n for c, n in item["replicas"].items()}
    yield gauge("reconciler_container_desired", "Replicas wanted.", list(wanted.items()))
    written: dict[Labels, int] = {}
    for labels, c in labelled:
        for stream in STREAMS:
            if (count := t.log_bytes.get((full_name(c), stream))) is not None:
                key = (*labels[:2], ("stream", stream))
                written[key] = written.get(key, 0) + count
    yield counter(
        "reconciler_log_bytes_total", "Bytes that the container wrote to its log.", list(written.items())
    )


# --- images, store, process ----------------------------------------------------------------------------------------


def _images(t: Telemetry) -> Iterator[Family]:
    """Series of a registry are there, from zero, as soon as an image is wanted from it."""
    counters = t.counters
    pulls = {(g, result): 0 for g in t.registries for result in RESULTS} | dict(counters.pulls)
    yield counter(
        "reconciler_pull_total",
        "Images fetched and unpacked.",
        [((("registry", g), ("result", r)), count) for (g, r), count in sorted(pulls.items())],
    )
    pulled = {(g, *kind): 0 for g in t.registries for kind in _ARRIVALS} | dict(t.pulled)
    yield counter(
        "reconciler_pull_bytes_total",
        "Packed bytes that arrived.",
        [
            ((("registry", registry), ("source", source), ("kind", kind)), count)
            for (registry, source, kind), count in sorted(pulled.items())
        ],
    )
    seconds = dict.fromkeys(t.registries, NO_PULL) | dict(counters.pull_seconds)
    yield Family(
        "reconciler_pull_duration_seconds",
        "histogram",
        "How long it took to fetch and unpack an image.",
        [((("registry", registry),), taken) for registry, taken in sorted(seconds.items())],
    )
    requests = {(g, code): 0 for g in t.registries for code in _CODES} | dict(t.requests)
    yield counter(
        "reconciler_registry_requests_total",
        "Answers of registries by status.",
        [((("registry", g), ("code", code)), count) for (g, code), count in sorted(requests.items())],
    )
    if t.peer_bytes is not None:
        yield counter(
            "reconciler_peer_sent_bytes_total", "Packed bytes given to other devices.", [((), t.peer_bytes)]
        )
    yield counter(
        "reconciler_image_verify_total",
        "Images whose content was checked.",
        [((("result", result),), count) for result, count in counters.verified.items()],
    )


def _care(t: Telemetry) -> Iterator[Family]:
    care = t.care
    yield gauge(
        "reconciler_store_corrupt_objects",
        "Objects of the store that were found damaged, and still are.",
        [((("kind", kind),), count) for kind, count in sorted(care.corrupt.items())],
    )
    yield gauge(
        "reconciler_store_last_scrub_timestamp_seconds",
        "When the scrub last came to the end of the store; 0 if never.",
        _one(care.finished),
    )
    yield counter("reconciler_store_scrub_bytes_total", "Bytes that the scrub has read.", _one(care.read))
    yield counter(
        "reconciler_store_repairs_total",
        "Repairs of what the scrub found damaged.",
        [((("result", result),), count) for result, count in sorted(care.repairs.items())],
    )
    yield counter(
        "reconciler_store_doubted_layers_total",
        "Layers that were read before use, because they came in during a boot that did not end in order.",
        [((("result", result),), count) for result, count in sorted(care.doubted.items())],
    )


def _store(t: Telemetry) -> Iterator[Family]:
    store = t.store
    if store is not None:
        yield gauge(
            "reconciler_store_bytes",
            "Bytes on disk, measured now and then.",
            [((("kind", kind),), count) for kind, count in sorted(store.sizes.items())],
        )
        yield gauge("reconciler_store_free_bytes", "Room on the store's file system.", _one(store.free))
        yield gauge("reconciler_store_size_bytes", "Size of the store's file system.", _one(store.total))
        for name, text, counts in (
            ("reconciler_store_images", "Images in the store.", store.images),
            ("reconciler_store_blobs", "Blobs in the store.", store.blobs),
        ):
            yield gauge(name, text, [((("state", state),), count) for state, count in sorted(counts.items())])
    yield from _care(t)
    yield gauge(
        "reconciler_volume_used_bytes",
        "Bytes in a named volume, measured now and then.",
        [
            ((("app", app), ("volume", volume), ("orphaned", str(orphaned).lower())), size)
            for (app, volume), (size, orphaned) in sorted(t.volumes.items())
        ],
    )
    yield gauge(
        "reconciler_volume_limit_bytes",
        "What a named volume may hold at most; only of those with a limit.",
        [
            ((("app", app), ("volume", volume)), limit)
            for (app, volume), limit in sorted(t.volume_limits.items())
        ],
    )
    counters = t.counters
    yield counter(
        "reconciler_gc_runs_total",
        "Garbage collections.",
        [((("result", result),), count) for result, count in counters.gc_runs.items()],
    )
    yield counter("reconciler_gc_reclaimed_bytes_total", "Bytes collected.", _one(counters.gc_bytes))
    yield counter(
        "reconciler_gc_removed_total",
        "Objects collected.",
        [((("kind", kind),), count) for kind, count in counters.gc_removed.items()],
    )


def _process(own: Process) -> Iterator[Family]:
    yield counter("process_cpu_seconds_total", "CPU time of the agent.", _one(own.cpu_seconds))
    yield gauge("process_resident_memory_bytes", "Resident memory of the agent.", _one(own.resident))
    yield gauge("process_virtual_memory_bytes", "Virtual memory of the agent.", _one(own.virtual))
    yield gauge("process_open_fds", "Open descriptors of the agent.", _one(own.descriptors))
    yield gauge("process_max_fds", "The most descriptors that the agent may have.", _one(own.max_descriptors))
    yield gauge("process_start_time_seconds", "When the agent was started.", _one(own.started))
