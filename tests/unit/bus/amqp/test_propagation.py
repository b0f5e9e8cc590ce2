"""Headers that a request propagates to the messages published during it."""

import asyncio

from bus.amqp.propagation import propagate_headers, propagated_headers


def test_headers_apply_inside_the_block_only() -> None:
    with propagate_headers({"atelier-request-id": "r-1"}):
        with propagate_headers({"atelier-request-id": "r-2"}):
            assert propagated_headers() == {"atelier-request-id": "r-2"}
        assert propagated_headers() == {"atelier-request-id": "r-1"}
    assert propagated_headers() == {}


def test_returned_headers_are_a_copy() -> None:
    with propagate_headers({"traceparent": "t"}):
        propagated_headers().clear()
        assert propagated_headers() == {"traceparent": "t"}


async def test_concurrent_requests_do_not_share_headers() -> None:
    async def request(request_id: str) -> dict[str, str]:
        with propagate_headers({"atelier-request-id": request_id}):
            await asyncio.sleep(0)
            return propagated_headers()

    assert await asyncio.gather(request("a"), request("b")) == [{"atelier-request-id": "a"}, {"atelier-request-id": "b"}]
