"""The keys of `--json` that others read: they stay."""

from benchmarks import bus, gateway, lists
from benchmarks.bus_goals import summarize_goals


def test_bus_has_the_agreed_keys() -> None:
    agreed = {"one_way_share_of_aio_pika", "request_reply_share_of_aio_pika", "over"}
    agreed |= {"kept_share_of_unkept", "kept_share_of_aio_pika", "rows_behind_a_peer"}
    assert agreed <= summarize_goals({}).keys()
    assert agreed | {"cells", "share", "cpu_share", "median_share", "median_cpu_share", "promises"} <= bus.summarize({}).keys()


def test_lists_have_the_agreed_keys() -> None:
    figures = lists.summarize({1_000: {"jobs, first page": 1.0}, 100_000: {"jobs, first page": 2.0}})
    assert figures["lists"] == {"jobs, first page": {"ms_1k": 1.0, "ms_100k": 2.0}}
    assert figures["growth"] == {"jobs, first page": 2.0}


def test_gateway_has_the_agreed_keys() -> None:
    agreed = {"bus_share_of_aio_pika", "http_share_of_aio_pika", "over_faststream_request", "bus_over_faststream_request", "sides"}
    assert agreed | {"gateway_share_of_cpu"} == gateway.summarize({}).keys()
