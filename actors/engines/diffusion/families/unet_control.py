"""ControlNets beside a U-Net: each runs on the rows that follow a picture with it, and on no others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.engines.diffusion.batching import DiffusionRow


def control_residuals(
    x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Mapping[str, torch.Tensor], rows: Sequence[DiffusionRow]
) -> dict[str, Any]:
    """The U-Net's arguments with what the ControlNets of all rows add, zero for a row without one; none where no row has one.

    `rows`: one for each half. `x`, `t`, `text` and each of `added`: R × …, as the U-Net reads them.
    """
    sums: list[torch.Tensor] = []
    for net in dict.fromkeys(row.control.net for row in rows if row.control):
        residuals = net_residuals(net, x, t, text, added, rows)
        sums = [total + part for total, part in zip(sums, residuals, strict=True)] if sums else residuals
    return {"down_block_additional_residuals": sums[:-1], "mid_block_additional_residual": sums[-1]} if sums else {}


def net_residuals(
    net: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, added: Mapping[str, torch.Tensor], rows: Sequence[DiffusionRow]
) -> list[torch.Tensor]:
    """What one ControlNet adds to each block, R × …, the middle block's last; the scale of each row is applied here."""
    halves = [number for number, row in enumerate(rows) if row.control and row.control.net is net and follows(rows, number)]
    controls = [control for number in halves if (control := rows[number].control)]
    index = torch.tensor(halves, device=x.device)
    options = {"added_cond_kwargs": {name: value[index] for name, value in added.items()}} if added else {}
    pictures = torch.cat([control.picture for control in controls])
    with controls[0].device_time.work_equally([rows[number].request_id for number in halves]):
        down, mid = net(x[index], t[index], text[index], pictures, 1.0, return_dict=False, **options)
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = torch.tensor([control.scale for control in controls], device=x.device, dtype=exact).view(-1, 1, 1, 1)
    scaled = [(part * scale).to(part.dtype) for part in (*down, mid)]
    return [part.new_zeros((len(x), *part.shape[1:])).index_copy(0, index, part) for part in scaled]


def follows(rows: Sequence[DiffusionRow], number: int) -> bool:
    """Whether a half is controlled: nets that pool their output, as those for shuffled pictures do, leave the negative one alone."""
    control = rows[number].control
    negative = number + 1 < len(rows) and rows[number + 1] is rows[number]
    return control is not None and not (negative and control.net.config.global_pool_conditions)
