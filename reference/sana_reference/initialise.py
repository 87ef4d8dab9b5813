"""Random weights that give every layer something to say, for models nobody has trained."""

import math

import torch
from torch import Tensor, nn

__all__ = ["initialise"]


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Fill every parameter from `seed`, in order of name; activations keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_scaled(noise, is_gain=name.endswith("weight")))


def _scaled(noise: Tensor, is_gain: bool) -> Tensor:
    """Matrices and tables by their fan-in, gains of norms around one, biases small."""
    if noise.ndim > 1:
        return noise / math.sqrt(noise[0].numel())
    return 0.1 * noise + is_gain
