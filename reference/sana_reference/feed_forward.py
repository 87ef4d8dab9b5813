"""The Mix-FFN: a gated feed-forward that also looks at each token's eight neighbours."""

from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.config import SanaConfig

__all__ = ["MixFeedForward"]


class MixFeedForward(nn.Module):
    """Expand, mix 3×3 neighbours channel by channel, gate, contract."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        wide = 2 * config.hidden
        self.expand = nn.Linear(config.dim, wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.contract = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Transform (B, height · width, C) tokens."""
        x = F.silu(self.expand(x)).reshape(-1, height, width, self.expand.out_features)
        x = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # a channels-last view: nothing is copied
        value, gate = x.flatten(1, 2).chunk(2, dim=-1)
        y: Tensor = self.contract(value * F.silu(gate))
        return y
