"""Alert rules and dashboard: valid by promtool, each alert tested, and every metric they use is exported."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors.engines.process import gpu
from actors.engines.process.gpu import EngineMonitor
from actors.engines.process.stats import ExecutorStats
from bus.observability import metrics
from ops.registry import MODULES, processes_of
from tests.support.external_programs import find_promtool

FOLDER = Path(__file__).parents[2] / "ops" / "observability"
OPERATOR = Path(__file__).parents[2] / "docs" / "operator.md"
PROMETHEUS_METRICS = {"up"}
METRIC_NAME = re.compile(r"\b(?:atelier|process)_[a-z_]+\b|\bup\b")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "grafana/dashboards/atelier.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def run_promtool(*arguments: str, cwd: Path = FOLDER) -> str:
    done = subprocess.run([find_promtool(), *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    assert f"{len(rules())} rules found" in run_promtool("check", "config", "prometheus.yml")


def test_alerts_fire_only_on_their_condition() -> None:
    run_promtool("test", "rules", "alerts_test.yml")
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    tested = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    assert {*tested} == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_dashboard_queries_are_valid_promql(tmp_path: Path) -> None:
    expressions = [expr.replace("$__rate_interval", "5m").replace("$step", ".*") for expr in dashboard_expressions()]
    records = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    assert f"{len(expressions)} rules found" in run_promtool("check", "rules", "panels.yml", cwd=tmp_path)


def test_every_referenced_metric_is_exported(exported: set[str]) -> None:
    expressions = (*dashboard_expressions(), *(rule["expr"] for rule in rules()))
    used = {name for expression in expressions for name in METRIC_NAME.findall(expression)}
    assert used - exported - PROMETHEUS_METRICS == set()
    assert "atelier_engine_device_memory_used_bytes" in used


def test_runbook_has_section_for_each_alert() -> None:
    sections = {part.partition("\n")[0]: part for part in OPERATOR.read_text().split("\n### ")[1:]}
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operator.md#{rule['alert'].lower()}"
        assert all(f"**{word}**" in sections[rule["alert"]] for word in ("Meaning", "First look", "Cure")), rule["alert"]


def test_every_step_is_scraped() -> None:
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) >= {"gateway", *processes_of(list(MODULES))}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The metric names of a process whose engine has a GPU."""
    stats = ExecutorStats()
    stats.record_exit(SimpleNamespace(cause="hang"))  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "open_nvml", lambda index: (Nvml(), index))
    stats.set_engine_metrics(*EngineMonitor("cuda:0").metrics(Engine()))
    metrics.DELIVERIES.labels("image", "done", "")
    for histogram in (metrics.STEP_SECONDS, metrics.WAIT_SECONDS, metrics.ATTEMPTS):
        histogram.labels("image")
    metrics.HTTP_REQUEST_SECONDS.labels("/jobs")
    metrics.DEAD_LETTERS.labels("image", "lora-missing")
    metrics.IN_FLIGHT.labels("image")
    metrics.HTTP_REQUESTS.labels("GET", "/jobs", "200")
    metrics.record_queue_length("atelier.image", 3)
    metrics.record_health({"queue:image": None}, started=True)
    with metrics.ENGINES.register("image", stats):
        yield {line.partition("{")[0].split()[0] for line in metrics.render().decode().splitlines() if not line.startswith("#")}


class Nvml:
    """A fake NVML."""

    NVMLError = RuntimeError

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=1 << 30, total=8 << 30)

    def nvmlDeviceGetUtilizationRates(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=93)


class Engine:
    """The attributes of the image engine that metrics read."""

    models = SimpleNamespace(cache=SimpleNamespace(loads=1, used_bytes=1 << 20), own_row_limit=4)
    oom = SimpleNamespace(applied_counts={}, row_limit=10)
    groups = SimpleNamespace(rows=[1, 2])
