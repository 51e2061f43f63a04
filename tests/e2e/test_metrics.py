"""Metrics as Prometheus sees them: scraped by a real one, clean under promtool, and gone with what they told of."""

import json
import re
import signal
import struct
import urllib.parse

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.test_loop import sleeper
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

METRICS = "http://127.0.0.1:9470/metrics"


@pytest.fixture
def scraped(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)], interval="1s")
    device.spec("web", sleeper("web", reference(box)))
    device.spec("job", sleeper("job", reference(box)).replace('[sleep, "100000"]', "[sh, -c, 'exit 3']"))
    device.start()
    device.running("web/main")
    device.until(lambda: 'reconciler_container_state{app="web"' in device.curl(METRICS))
    return device


def query(device: Device, expression: str) -> list[dict[str, dict[str, str]]]:
    answer = device.curl(f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(expression)}")
    found: list[dict[str, dict[str, str]]] = json.loads(answer)["data"]["result"]
    return found


def test_a_real_prometheus_scrapes_what_the_device_does(scraped: Device) -> None:
    config = scraped.root / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n  - job_name: reconciler\n    scrape_interval: 500ms\n    scrape_timeout: 500ms\n"
        "    static_configs:\n      - targets: ['127.0.0.1:9470']\n"
    )
    with (scraped.root / "prometheus.log").open("wb") as log:
        scraped.spawn(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={scraped.root}/tsdb",
                "--web.listen-address=127.0.0.1:9090",
            ],
            stdout=log,
            stderr=log,
        )
    scraped.until(lambda: query(scraped, 'up{job="reconciler"} == 1'), message="for a scrape")
    assert query(scraped, 'reconciler_container_state{app="web",container="main",state="running"} == 1')
    assert query(scraped, 'container_memory_usage_bytes{app="web",container="main"} > 0')
    assert query(scraped, 'container_spec_memory_limit_bytes{app="web"} == 16777216')
    assert query(scraped, "reconciler_build_info")
    assert query(scraped, 'reconciler_spec_valid{app="web"} == 1')
    scraped.until(lambda: query(scraped, 'reconciler_container_restarts_total{app="job",reason="exit"} > 0'))


def test_the_metrics_are_clean_under_promtool_in_both_formats(scraped: Device) -> None:
    text = scraped.curl(METRICS)
    checked = scraped.inside(["promtool", "check", "metrics"], input=text.encode(), check=False)
    # promtool calls cAdvisor's own names (container_spec_cpu_period ...) by no other standard than everybody's.
    assert checked.returncode == 0, checked.stdout + checked.stderr
    openmetrics = scraped.curl(METRICS, "-H", "Accept: application/openmetrics-text; version=1.0.0")
    assert openmetrics.endswith("# EOF\n")


def sample(device: Device, series: str) -> float:
    """The value of one series, as a scrape has it now."""
    (line,) = [line for line in device.curl(METRICS).splitlines() if line.startswith(f"{series} ")]
    return float(line.rpartition(" ")[2])


WRITER = """\
apiVersion: reconciler/v1
kind: App
name: talk
containers:
  main:
    image: {image}
    command: [sh, -c, "while true; do echo 0123456789; echo no >&2; sleep 0.01; done"]
    stop_grace_period: 0s
    logging: {{driver: file, max_size: 4Ki, max_files: 2}}
"""


def test_what_containers_write_is_counted_across_rotations_and_agents(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)], interval="1s")
    device.spec("talk", WRITER.format(image=reference(box)))
    device.start()
    pid = device.running("talk/main")
    device.until(lambda: "reconciler_log_bytes_total" in device.curl(METRICS))
    out = 'reconciler_log_bytes_total{app="talk",container="main",stream="stdout"}'
    err = 'reconciler_log_bytes_total{app="talk",container="main",stream="stderr"}'
    device.until(lambda: sample(device, out) > 9000, message="for more than the log's files hold")
    assert sample(device, out) % 11 == 0
    assert sample(device, err) >= 3 * (9000 // 11)
    device.stop(signal.SIGKILL)
    before = sample_of_index(device)
    device.start()
    device.until(lambda: "reconciler_log_bytes_total" in device.curl(METRICS))
    assert sample(device, out) >= before
    assert device.pid("talk/main") == pid
    # Another container of that name begins at 0: a counter's reset, as Prometheus expects one.
    reached = sample(device, out)
    device.spec("talk", WRITER.format(image=reference(box)).replace("no >&2", "yes >&2; sleep 1000"))
    device.until(lambda: sample(device, err) == 4, message="for the new container's count")
    assert sample(device, out) == 11 < reached


def sample_of_index(device: Device) -> int:
    """What the log's own index says, read by hand: the sum of the lengths of stdout's entries."""
    (index,) = device.state.glob("containers/*/log/current.idx")
    data = index.read_bytes()
    entries = [struct.unpack_from("<QQQBBHI", data, at) for at in range(32, len(data) - 31, 32)]
    return sum(entry[2] for entry in entries if entry[3] == 1)


def test_what_the_device_is_and_wants_is_told(scraped: Device) -> None:
    text = scraped.curl(METRICS)
    assert re.search(r"^reconciler_clock_synchronized [01]$", text, re.MULTILINE)
    assert sample(scraped, "reconciler_watchdog_stalls_total") >= 0
    # `job` ends badly again and again, so nothing of this has come up whole yet
    assert sample(scraped, 'reconciler_generation{kind="desired"}') == 1
    assert sample(scraped, 'reconciler_generation{kind="last_good"}') == 0
    (scraped.specs / "job.yaml").unlink()
    scraped.until(lambda: sample(scraped, 'reconciler_generation{kind="last_good"}') == 1)
    scraped.until(lambda: sample(scraped, 'reconciler_generation{kind="desired"}') == 1)
    registry = reference_registry(scraped)
    for code in ("401", "404", "429", "5xx"):
        assert (
            sample(scraped, f'reconciler_registry_requests_total{{registry="{registry}",code="{code}"}}') == 0
        )


def reference_registry(device: Device) -> str:
    (found,) = re.findall(r'container_info\{app="web".*image="([^/"]+)/', device.curl(METRICS))
    return str(found)


def test_series_vanish_with_what_they_told_of(scraped: Device) -> None:
    (scraped.specs / "web.yaml").unlink()
    scraped.until(lambda: 'app="web"' not in scraped.curl(METRICS), message="for the series to vanish")
    assert 'app="job"' in scraped.curl(METRICS)


def test_only_reading_is_offered(scraped: Device) -> None:
    assert "405" in scraped.curl(METRICS, "-i", "-X", "POST", "-d", "x")
    assert "404" in scraped.curl("http://127.0.0.1:9470/v1/status", "-i")
    assert scraped.curl("http://127.0.0.1:9470/healthz") == "ok\n"
