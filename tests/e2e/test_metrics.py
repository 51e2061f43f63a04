"""Metrics as Prometheus sees them: scraped by a real one, clean under promtool, and gone with what they told of."""

import json
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


def test_series_vanish_with_what_they_told_of(scraped: Device) -> None:
    (scraped.specs / "web.yaml").unlink()
    scraped.until(lambda: 'app="web"' not in scraped.curl(METRICS), message="for the series to vanish")
    assert 'app="job"' in scraped.curl(METRICS)


def test_only_reading_is_offered(scraped: Device) -> None:
    assert "405" in scraped.curl(METRICS, "-i", "-X", "POST", "-d", "x")
    assert "404" in scraped.curl("http://127.0.0.1:9470/v1/status", "-i")
    assert scraped.curl("http://127.0.0.1:9470/healthz") == "ok\n"
