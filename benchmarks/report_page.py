"""Writes the tables and charts of a page of figures between its marks, `<!-- bus -->` … `<!-- /bus -->`. Other text stays as it is."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

MODES = {"send": "one way", "ask": "request and reply"}
BAR_WIDTH, BAR_HEIGHT, LABEL_WIDTH = 360, 18, 190


def update_page(report: Mapping[str, Any], page: Path) -> None:
    """Replace the blocks of the benchmarks that were run; the others keep their old tables."""
    text = page.read_text()
    blocks = {"conditions": conditions(report["conditions"])}
    for name, result in report["benches"].items():
        if "figures" in result and name in TABLES:
            charts = page.parent / page.stem
            blocks[name] = f"`{result['command']}` took {result['seconds']:.0f} s.\n\n" + TABLES[name](result["figures"], charts)
    for name, block in blocks.items():
        before, begin_mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end_mark, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}{begin_mark}{block}\n{end_mark}{after}" if end_mark else text
    page.write_text(text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def conditions(values: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in values["packages"].items())
    return (
        f"{values['day']}: {values['cores']} cores of {values['processor']}, {values['memory_gb']} GB, no GPU; "
        f"load {values['load_before']:.1f} before and {values['load_after']:.1f} after. Python {values['python']}; {packages}.\n"
    )


def bus(figures: Mapping[str, Any], charts: Path) -> str:
    rows = []
    for cell, sides in figures["cells"].items():
        mode, size, in_flight = cell.split()
        for side, values in sides.items():
            shares = [figures[kind][cell].get(side, "") for kind in ("share", "cpu_share")]
            rows.append([MODES[mode], size, in_flight, side, values["per_second"], values["cpu_us"], *shares])
    guarantees = [
        [
            name,
            peer["queue"],
            peer["confirms"],
            "yes" if peer["replies"] else "no",
            "yes" if peer["stores_outcomes"] else "no",
            peer["note"],
        ]
        for name, peer in figures["promises"].items()
    ]
    chart_values = {
        f"{side}, {label}": figures["median_cpu_share"][side].get(mode, 0) for side in ("bus", "bus_kept") for mode, label in MODES.items()
    }
    chart = bar_chart(charts / "bus.svg", "Share of bare aio-pika with the same guarantees, by processor time", chart_values)
    return "\n".join([
        chart,
        f"Median share of bare aio-pika: {figures['median_share']}; by processor time {figures['median_cpu_share']}.\n",
        f"Messages per second over each peer, medians by mode: {figures['over']}. {rows_behind_a_peer(figures['rows_behind_a_peer'])}\n",
        table(["side", "queue", "confirms", "replies", "outcome stored in Postgres", "note"], guarantees),
        table(["mode", "bytes", "in flight", "side", "messages/s", "µs of processor", "of aio-pika", "by processor time"], rows),
    ])  # fmt: skip


def rows_behind_a_peer(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No peer was faster than the bus in any row."
    shares = (f"{row['row']} ({row['share']} of {row['peer']})" for row in rows)
    return f"Rows in which a peer was faster, with the bus's share of its messages per second: {', '.join(shares)}."


def pipeline(figures: Mapping[str, Any], charts: Path) -> str:
    rows = [[side, rate, figures["device_busy"][side]] for side, rate in figures["orders_per_second"].items()]
    chart = bar_chart(charts / "pipeline.svg", "Image orders per second", figures["orders_per_second"])
    speed_ratio, cost = figures["over_inline"], figures["bus_share_of_work"]
    last = f"Orders per second over the bus: {speed_ratio} times those of the inline worker. The bus costs {cost:.0%} of the work.\n"
    return "\n".join([chart, table(["side", "orders/s", "device busy"], rows), last])


def http(figures: Mapping[str, Any], charts: Path) -> str:
    rows = [[clients, side, *values.values()] for clients, sides in figures["clients"].items() for side, values in sides.items()]
    worst = {
        f"{side}, {clients} clients": values["health_worst_ms"]
        for clients, sides in figures["clients"].items()
        for side, values in sides.items()
    }
    chart = bar_chart(charts / "http.svg", "Slowest response of /health while the model computes, ms", worst)
    head = ["clients", "side", "requests/s", "p50 ms", "p99 ms", "worst /health ms"]
    return "\n".join([chart, table(head, rows), f"Requests per second over those of the inline server: {figures['over_inline']}.\n"])


def text(figures: Mapping[str, Any], charts: Path) -> str:
    rates, ratios = figures["tokens_per_second"], ("over_direct", "over_generate", "over_vllm")
    sides = list(next(iter(rates.values())))
    rows = [
        [clients, *(measured[side] for side in sides), *(figures[ratio].get(clients, "") for ratio in ratios)]
        for clients, measured in rates.items()
    ]
    head = ["clients", *(f"{side}, tokens/s" for side in sides), "bus over direct", "embedded over generate", "embedded over vLLM"]
    left_out = [f"{side} is left out: {reason}.\n" for side, reason in figures["left_out"].items()]
    return "\n".join([table(head, rows), *left_out, *prefix_cache(figures["prefix_cache"])])


def prefix_cache(figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    rows = [[f"{side} the cache", *times.values()] for side, times in figures["first_token_ms"].items()]
    head = ["embedded engine", "first question, ms to the first token", "following questions"]
    last = (
        f"{figures['cached_tokens']} tokens of a following prompt were cached; its first token came {figures['speedup']} times as fast.\n"
    )
    return [table(head, rows), last]


def vlm(figures: Mapping[str, Any], charts: Path) -> str:
    rows = [
        [family["family"], size, sides["engine"], sides["generate"], family["over_generate"][size], family["batch_speedup"].get(size, "")]
        for family in figures["families"].values()
        for size, sides in family["tokens_per_second"].items()
    ]
    head = ["family", "questions at once", "engine, tokens/s", "generate, tokens/s", "engine over generate", "over one by one"]
    left_out = [f"{side} is left out: {reason}.\n" for side, reason in figures["left_out"].items()]
    return "\n".join([table(head, rows), *left_out])


def growth(figures: Mapping[str, Any], charts: Path) -> str:
    backlogs = [[count, rate, figures["backlog_share"][count]] for count, rate in figures["by_backlog"].items()]
    actors = [[count, rate, figures["actors_speedup"][count]] for count, rate in figures["by_actors"].items()]
    return "\n".join([
        table(["backlog", "messages/s", "of the smallest"], backlogs),
        table(["actor processes", "messages/s", "of one"], actors),
    ])  # fmt: skip


def start(figures: Mapping[str, Any], charts: Path) -> str:
    rows = [
        [step, values["ready_seconds"], goals["ready_seconds"], values["processor_seconds"], values["memory_mb"], goals["memory_mb"]]
        for step, values in figures["processes"].items()
        for goals in [figures["goals"][step]]
    ]
    return table(["process", "s to ready", "goal", "s of processor", "MB", "goal"], rows)


def ledger(figures: Mapping[str, Any], charts: Path) -> str:
    counts = list(figures["milliseconds"])
    rows = [[name, *(figures["milliseconds"][count][name] for count in counts), ratio] for name, ratio in figures["growth"].items()]
    head = ["query", *(f"ms with {int(count):,} rows" for count in counts), "growth"]
    rates = (
        f"{figures['events_per_second']:,.0f} events stored per second, {figures['events_kept_per_second']:,.0f} while they are published."
    )
    return f"{rates}\n\n{table(head, rows)}"


def gateway(figures: Mapping[str, Any], charts: Path) -> str:
    spent = ("client", "gateway", "responder", "broker")
    rows = [
        [count, side, *(values[name] for name in ("per_second", "p50_ms", "p99_ms")), *(values["cpu_us"].get(name, "") for name in spent)]
        for side, counts in figures["sides"].items()
        for count, values in counts.items()
    ]
    rows.sort(key=lambda row: int(row[0]))
    head = ["callers", "side", "requests/s", "p50 ms", "p99 ms", *(f"{name}, µs" for name in spent)]
    kinds = {
        "bus client over bare aio-pika": "bus_share_of_aio_pika",
        "HTTP over bare aio-pika": "http_share_of_aio_pika",
        "HTTP over FastStream's `request()`": "over_faststream_request",
        "gateway's share of the processor time of an HTTP request": "gateway_share_of_cpu",
    }
    counts = list(figures["http_share_of_aio_pika"])
    shares = table(["callers", *counts], [[name, *(figures[key][count] for count in counts)] for name, key in kinds.items()])
    return "\n".join([shares, table(head, rows), *waiting_clients(figures.get("waiting"))])


def waiting_clients(figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    return [
        f"{figures['replied']} of {figures['clients']} clients that waited at once for a reply of two seconds had it after"
        f" {figures['seconds']} s; the gateway had {figures['gateway_more_mb']} MB more memory and"
        f" {figures['gateway_more_threads']} more threads."
        f" FastStream's `request()` returned {figures['faststream_replied']} replies in {figures['faststream_seconds']:.0f} s.\n"
    ]


def executor(figures: Mapping[str, Any], charts: Path) -> str:
    finish, orders, swaps = figures["mean_finish_seconds"], figures["batching_orders_per_second"], figures["lora_swaps"]
    lag, idle = ([f"{name} {value}" for name, value in figures[key].items()] for key in ("loop_lag_ms", "idle_loop_lag_ms"))
    rows = [
        ["event-loop lag, ms", ", ".join(lag)],
        ["the same without work, ms", ", ".join(idle)],
        ["step batching over one by one", figures["step_batching_speedup"]],
        ["static batching over one by one", figures["static_batching_speedup"]],
        ["orders/s: step, static, one by one", ", ".join(str(orders[name]) for name in ("step", "static", "single"))],
        ["mean s to finish: step, static, one by one", ", ".join(str(finish[name]) for name in ("step", "static", "single"))],
        ["s from a cancel to the next order's first step", figures["cancel_to_next_step_seconds"]],
        ["device busy: executor, inline loop", f"{figures['busy_share']}, {figures['inline_busy_share']}"],
        ["orders/s: executor, inline loop", f"{figures['orders_per_second']}, {figures['inline_orders_per_second']}"],
        [f"{swaps['count']} LoRA swaps: MB more, ms each", f"{swaps['growth_bytes'] / 1e6:.1f}, {swaps['seconds_each'] * 1000:.0f}"],
    ]
    return table(["figure", "measured"], rows)


def dead_letters(figures: Mapping[str, Any], charts: Path) -> str:
    names = ("letters", "ingest_per_second", "replay_per_second", "group_seconds", "lost", "duplicated")
    head = ["dead letters", "ingested/s", "replayed/s", "s to group", "lost", "duplicated"]
    return table(head, [[figures[name] for name in names]])


def bar_chart(file: Path, title: str, values: Mapping[str, float]) -> str:
    """Write a bar chart as SVG, and return the Markdown line that shows it."""
    largest, height = max(values.values()) or 1, 30 + len(values) * (BAR_HEIGHT + 6)
    width = LABEL_WIDTH + BAR_WIDTH + 80
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    lines.append(f'<rect width="100%" height="100%" fill="white"/><text x="8" y="18" font-weight="bold">{escape(title)}</text>')
    for number, (name, value) in enumerate(values.items()):
        top = 30 + number * (BAR_HEIGHT + 6)
        lines.append(f'<text x="{LABEL_WIDTH - 6}" y="{top + 13}" text-anchor="end">{escape(name)}</text>')
        lines.append(
            f'<rect x="{LABEL_WIDTH}" y="{top}" width="{max(1, value / largest * BAR_WIDTH):.0f}" height="{BAR_HEIGHT}" fill="#3b6ea5"/>'
        )
        lines.append(f'<text x="{LABEL_WIDTH + max(1, value / largest * BAR_WIDTH) + 6:.0f}" y="{top + 13}">{value:g}</text>')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, "</svg>"]) + "\n")
    return f"![{title}]({file.parent.name}/{file.name})\n"


TABLES: dict[str, Callable[[Mapping[str, Any], Path], str]] = {
    "bus": bus,
    "pipeline": pipeline,
    "http": http,
    "text": text,
    "vlm": vlm,
    "growth": growth,
    "start": start,
    "ledger": ledger,
    "gateway": gateway,
    "executor": executor,
    "dead-letters": dead_letters,
}
