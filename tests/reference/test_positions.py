"""Positions against diffusers' table."""

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from sana_reference.positions import GridPositions


@pytest.mark.parametrize(("base", "scale"), [(64, 1.0), (128, 2.0)], ids=["2k", "4k"])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (48, 80), (37, 1)], ids=str)
def test_positions_equal_diffusers_table(base: int, scale: float, size: tuple[int, int]) -> None:
    expected = get_2d_sincos_pos_embed(1152, size, base_size=base, interpolation_scale=scale, output_type="pt")
    torch.testing.assert_close(GridPositions(1152, base, scale)(*size), expected.float(), atol=5e-6, rtol=0)


def test_positions_tell_a_row_from_a_column() -> None:
    wide, tall = GridPositions(16, 8, 1.0)(2, 3), GridPositions(16, 8, 1.0)(3, 2)
    swapped = tall.unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1).roll(8, dims=1)
    assert torch.equal(wide, swapped)
    assert not torch.equal(wide, tall)
