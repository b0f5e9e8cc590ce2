"""The shares of the bus benchmark that its goals name: of bare aio-pika, of the bus without its inbox, and over each peer.

A share is the median of the rounds' own ratios of messages per second, and by messages in flight the median over the sizes.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.peers.peer_processes import Throughput

PEERS_OF_BUS = ("faststream", "celery", "dramatiq", "dramatiq_quorum", "taskiq")
MODES = {"send": "one_way", "ask": "request_reply"}

Cells = Mapping[str, Mapping[str, Sequence[Throughput]]]
"""The rounds of each side, by cell: mode, bytes and messages in flight, such as `send 1000 64`."""


def summarize_goals(cells: Cells) -> dict[str, Any]:
    """`kept_…` compares the bus with its inbox one way; `rows_behind_a_peer` are the cells in which a peer is faster than the bus."""
    return {
        **{f"{name}_share_of_aio_pika": share_by_in_flight(cells, mode, "bus", "aio_pika") for mode, name in MODES.items()},
        "kept_share_of_unkept": share_by_in_flight(cells, "send", "bus_kept", "bus"),
        "kept_share_of_aio_pika": share_by_in_flight(cells, "send", "bus_kept", "aio_pika"),
        "request_reply_kept_share_of_unkept": share_by_in_flight(cells, "ask", "bus_kept", "bus"),
        "request_reply_kept_share_of_aio_pika": share_by_in_flight(cells, "ask", "bus_kept", "aio_pika"),
        "over": {peer: ratios for peer in PEERS_OF_BUS if (ratios := over_peer(cells, peer))},
        "rows_behind_a_peer": rows_behind_a_peer(cells),
    }


def share_by_in_flight(cells: Cells, mode: str, side: str, baseline: str) -> dict[str, float]:
    shares: dict[str, list[float]] = {}
    for cell, by_side in cells.items():
        cell_mode, _, in_flight = cell.split()
        if cell_mode == mode and (share := rate_share(by_side, side, baseline)):
            shares.setdefault(in_flight, []).append(share)
    return {in_flight: round(median(values), 3) for in_flight, values in shares.items()}


def over_peer(cells: Cells, peer: str) -> dict[str, float]:
    """By mode, the median over the cells of the bus's messages per second over the peer's."""
    ratios = {mode: [rate_share(by_side, "bus", peer) for cell, by_side in cells.items() if cell.startswith(mode)] for mode in MODES}
    measured = {mode: [ratio for ratio in values if ratio] for mode, values in ratios.items()}
    return {mode: round(median(values), 3) for mode, values in measured.items() if values}


def rows_behind_a_peer(cells: Cells) -> list[dict[str, Any]]:
    """`share`: the bus's messages per second over the peer's, below 1."""
    shares = [(cell, peer, rate_share(by_side, "bus", peer)) for cell, by_side in cells.items() for peer in PEERS_OF_BUS]
    return [{"row": cell, "peer": peer, "share": share} for cell, peer, share in shares if share and share < 1]


def rate_share(by_side: Mapping[str, Sequence[Throughput]], side: str, baseline: str) -> float | None:
    """None when one of the two was not measured in this cell."""
    if side not in by_side or baseline not in by_side:
        return None
    rounds = zip(by_side[side], by_side[baseline], strict=True)
    return round(median(ours.messages_per_second / theirs.messages_per_second for ours, theirs in rounds), 3)
