"""The tables that `make bench` writes into docs/benchmarks.md: one for each benchmark that it runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import all as all_benches
from benchmarks import bus, report_page
from benchmarks.arguments import BENCHES

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"
CHARTS = Path("unused")


@pytest.mark.parametrize("name", all_benches.SIZES)
def test_every_benchmark_of_the_run_has_a_table_and_a_place_on_the_page(name: str) -> None:
    assert name in report_page.TABLES
    assert name in BENCHES
    assert PAGE.read_text().count(f"<!-- {name} -->\n") == PAGE.read_text().count(f"<!-- /{name} -->\n") == 1


def side(per_second: float, **cpu_us: int) -> dict[str, object]:
    return {"per_second": per_second, "p50_ms": 1.5, "p99_ms": 3.0, "cpu_us": cpu_us}


def test_gateway_table_has_shares_and_processor_time_of_each_process() -> None:
    figures = {
        "bus_share_of_aio_pika": {"64": 1.2, "256": 1.3},
        "http_share_of_aio_pika": {"64": 0.7, "256": 0.6},
        "over_faststream_request": {"64": 2.0, "256": 3.0},
        "gateway_share_of_cpu": {"64": 0.5, "256": 0.4},
        "sides": {
            "aio_pika": {"64": side(1000.0, client=300, gateway=0), "256": side(1100.0, client=310, gateway=0)},
            "http": {"64": side(700.0, client=100, gateway=800), "256": side(660.0, client=110, gateway=810)},
        },
        "waiting": {
            "clients": 300, "replied": 299, "seconds": 3.5, "gateway_more_mb": 26.0, "gateway_more_threads": 0, "faststream_replied": 9,
            "faststream_seconds": 20.0,
        },
    }  # fmt: skip
    text = report_page.gateway(figures, CHARTS)
    assert "| callers | 64 | 256 |" in text
    assert "| HTTP over bare aio-pika | 0.7 | 0.6 |" in text
    rows = [line for line in text.splitlines() if "1.5" in line]
    assert rows[0] == "| 64 | aio_pika | 1000.0 | 1.5 | 3.0 | 300 | 0 |  |  |"
    assert rows[3] == "| 256 | http | 660.0 | 1.5 | 3.0 | 110 | 810 |  |  |"
    assert "299 of 300 clients" in text
    assert "299 of 300 clients" not in report_page.gateway(figures | {"waiting": None}, CHARTS)


def test_rows_behind_a_peer_are_named() -> None:
    assert report_page.rows_behind_a_peer([]) == "No peer was faster than the bus in any row."
    rows = [{"row": "send 1000 1", "peer": "dramatiq", "share": 0.8}]
    assert report_page.rows_behind_a_peer(rows).endswith("send 1000 1 (0.8 of dramatiq).")


def test_dead_letter_table_shows_what_is_lost() -> None:
    figures = {"letters": 10, "ingest_per_second": 5.0, "replay_per_second": 4.0, "group_seconds": 0.1, "lost": 1, "duplicated": 2}
    assert "| 10 | 5.0 | 4.0 | 0.1 | 1 | 2 |" in report_page.dead_letters(figures, CHARTS)


def test_expected_seconds_are_those_of_the_last_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert all_benches.earlier_seconds(file) == {}
    file.write_text('{"benches": {"bus": {"seconds": 61.5, "error": "x"}, "http": {"seconds": 20}}}')
    assert all_benches.earlier_seconds(file) == {"bus": 61.5, "http": 20.0}
    file.write_text("[]")
    assert all_benches.earlier_seconds(file) == {}
    assert all_benches.expectation([61.5, 20.0]) == ", 82 s the last time"
    assert all_benches.expectation([61.5, None]) == ""


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [('{"x": 1}', {"figures": {"x": 1}}), ("broken", {"error": "why"}), (None, {"error": "it took more than 600 s"})],
)
def test_benchmark_that_fails_or_takes_too_long_is_an_error_of_its_own(
    stdout: str | None, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if stdout is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 0, stdout, "why")

    monkeypatch.setattr(all_benches, "run_command", run)
    result = all_benches.run_bench(["bench", "http", "--json", "--models", "folder"])
    assert result.items() >= ({"command": "atelier bench http --json"} | expected).items()
    assert result["seconds"] >= 0


def test_bus_table_says_what_each_side_promises(tmp_path: Path) -> None:
    page = report_page.bus(bus.summarize({}), tmp_path)

    assert "| bus_kept | quorum | each | yes | yes | with the inbox |" in page
    assert "| dramatiq | classic |" in page
