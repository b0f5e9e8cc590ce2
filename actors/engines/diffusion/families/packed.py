"""What Flux and Qwen-Image share: the latents of 2 × 2 places are packed into one token before the scheduler takes them."""

import torch

from actors.engines.diffusion.families.transformer import FlowFamily
from actors.engines.diffusion.requests import InputPicture, ResolvedRequest


class PackedFamily(FlowFamily):
    """Rows have latents of 1 × tokens × 4C. A token's values are of one channel after the other."""

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """1 × … × C × h × w → 1 × h·w/4 × 4C; further axes have the length 1."""
        height, width = latents.shape[-2:]
        squares = latents.reshape(1, self.latent_channels, height // 2, 2, width // 2, 2)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(1, height * width // 4, 4 * self.latent_channels)

    def unpack(self, request: ResolvedRequest, latents: torch.Tensor) -> torch.Tensor:
        """1 × h·w/4 × 4C → 1 × C × h × w."""
        height, width = self.latent_size(request)
        squares = latents.reshape(1, height // 2, width // 2, self.latent_channels, 2, 2)
        return squares.permute(0, 3, 1, 4, 2, 5).reshape(1, self.latent_channels, height, width)

    def latent_mask(self, request: ResolvedRequest, mask: InputPicture) -> torch.Tensor:
        """The same in each channel."""
        return self.pack(super().latent_mask(request, mask).repeat(1, self.latent_channels, 1, 1))

    def grid_size(self, request: ResolvedRequest) -> tuple[int, int]:
        """Height and width in tokens."""
        height, width = self.latent_size(request)
        return height // 2, width // 2
