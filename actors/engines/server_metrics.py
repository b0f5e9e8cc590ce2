"""A server's metrics page in Prometheus' text form, read as name and value; series of one name are added up."""

import re

LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


def reading(page: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in LINE.findall(page):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return found
