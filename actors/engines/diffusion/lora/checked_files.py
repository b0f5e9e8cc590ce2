"""LoRA files that were validated, so that a file that many orders name costs the thread that steps the rows once."""

from collections import OrderedDict
from collections.abc import Hashable

from actors.engines.diffusion.lora.layers import LayerTable
from actors.engines.diffusion.lora.strength import lora_is_gone
from actors.engines.diffusion.lora.validation import validate_lora
from actors.engines.diffusion.requests import LoraFile
from actors.engines.settings import ImageSettings

MAX_CHECKED = 1024
"""Files with a model that are remembered; a file's name is its sha256, so that its content stays."""


class CheckedFiles:
    """Remembers which files are valid, and whose names and shapes fit which model. What was refused is read again."""

    def __init__(self, settings: ImageSettings) -> None:
        self.max_bytes, self.max_rank = settings.lora_max_bytes, settings.lora_max_rank
        self._passed: OrderedDict[Hashable, None] = OrderedDict()

    def check(self, lora: LoraFile, checkpoint: str, layers: LayerTable | None) -> None:
        """`layers`: those of the checkpoint, None while it is not in memory; then the file's header alone is validated.

        Raises PermanentError("lora-invalid"), TemporaryError("lora-gone").
        """
        key = lora.path, lora.sha256, checkpoint if layers else None
        if key not in self._passed:
            try:
                info = validate_lora(lora.path, lora.origin, max_bytes=self.max_bytes, max_rank=self.max_rank)
            except FileNotFoundError:
                raise lora_is_gone(lora.origin) from None
            if layers:
                layers.plan(info.shapes, lora.origin)
        self._passed[key] = None
        self._passed.move_to_end(key)
        if len(self._passed) > MAX_CHECKED:
            self._passed.popitem(last=False)
