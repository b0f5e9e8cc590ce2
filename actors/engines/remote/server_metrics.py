"""What a model server reports among its metrics, in Prometheus' text format."""

import re
from contextlib import suppress

CACHE_CONFIG_LINE = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
LABEL = re.compile(r'(?<!\w)(\w+)="([^"]*)"')
CACHE_CONFIG_LABELS = ("block_size", "gpu_memory_utilization", "num_gpu_blocks", "cache_dtype")
METRIC_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


def parse_metrics(page: str) -> dict[str, float]:
    """The value of each metric in Prometheus' text format, summed over its labels."""
    values: dict[str, float] = {}
    for name, value in METRIC_LINE.findall(page):
        try:
            values[name] = values.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return values


def parse_cache_config(page: str) -> dict[str, int | float | str]:
    """The settings of its cache that a vLLM has among its metrics; {} for another page."""
    match = CACHE_CONFIG_LINE.search(page)
    labels = dict(LABEL.findall(match[1])) if match else {}
    return {name: parse_label(labels[name]) for name in CACHE_CONFIG_LABELS if labels.get(name, "None") != "None"}


def parse_label(text: str) -> int | float | str:
    for parse in (int, float):
        with suppress(ValueError):
            return parse(text)
    return text
