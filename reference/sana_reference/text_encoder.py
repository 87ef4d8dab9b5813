"""Gemma-2 as a text encoder: last hidden states of prompts that follow a precomputed prefix.

Written for export: batch and length are symbolic, no branch looks at data. Windowed layers are not told
apart from the others because a text never reaches the window's 4096 tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from sana_runtime.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.config import TextConfig

__all__ = ["Prefix", "TextEncoder"]

WINDOW = 4096  # tokens that a windowed layer of Gemma-2 looks back on
MASKED = -1e4  # softcapped scores lie within ±50, so this is as good as minus infinity, and finite in every dtype

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (B, 1, L, head_dim)


class Prefix(NamedTuple):
    """What the layers remember of BOS and the instruction, so that they are never computed again."""

    keys_values: Tensor  # (depth, 2, 1, kv_heads, P, head_dim), keys already rotated
    bos: Tensor  # (1, 1, D), the final state of BOS


class Norm(nn.Module):
    """Root-mean-square norm in float32 whose weight is stored as its distance from one."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float())).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and softly capped scores."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale = config.query_scalar**-0.5
        self.cap = config.attention_softcap
        inner = config.heads * config.head_dim
        self.qkv = nn.Linear(config.dim, inner + 2 * config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, past: Tensor, rotation: Rotation, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to `past` (2, 1, kv_heads, P, head_dim) and to x itself; also return x's own keys and values."""
        qkv = torch.unflatten(self.qkv(x), -1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads + 2 kv_heads, L, ·)
        q, k, v = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, rotation), rotate(k, rotation)
        keys, values = (
            torch.cat((held.expand(x.shape[0], -1, -1, -1), own), dim=2)
            for held, own in zip(past.unbind(), (k, v), strict=True)
        )
        mixed = self.attend(q, keys, values, bias)
        return self.out(mixed.transpose(1, 2).flatten(2)), torch.stack((k, v))

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Softmax attention in which neighbouring query heads share one key and value head."""
        q = torch.unflatten(q, 1, (self.kv_heads, -1))  # (B, kv_heads, group, L, head_dim)
        scores = (q @ keys.unsqueeze(2).transpose(-1, -2)).float()  # (B, kv_heads, group, L, P + L)
        scores = torch.tanh(scores * (self.scale / self.cap)) * self.cap + bias
        return (scores.softmax(-1).to(q.dtype) @ values.unsqueeze(2)).flatten(1, 2)


class FeedForward(nn.Module):
    """Gated feed-forward: one product for gate and value together."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * hidden, bias=False)
        self.contract = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)
        out: Tensor = self.contract(F.gelu(gate, approximate="tanh") * value)
        return out


class Layer(nn.Module):
    """One decoder layer: each half is normalised before and after."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.attention_post_norm = Norm(config.dim, config.norm_eps)
        self.feed_forward_norm = Norm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.hidden)
        self.feed_forward_post_norm = Norm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, past: Tensor, rotation: Rotation, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output and its own keys and values (2, B, kv_heads, L, head_dim)."""
        mixed, own = self.attention(self.attention_norm(x), past, rotation, bias)
        x = x + self.attention_post_norm(mixed)
        x = x + self.feed_forward_post_norm(self.feed_forward(self.feed_forward_norm(x)))
        return x, own


class TextEncoder(nn.Module):
    """Final states of prompts, given the prefix that precedes them. Runs in float32 or bfloat16, never float16."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = Norm(config.dim, config.norm_eps)

    def forward(self, input_ids: Tensor, text_mask: Tensor, instructed: Tensor, prefix: Prefix) -> Tensor:
        """States (B, L+1, D) of BOS and of the L tokens `input_ids` (B, L).

        `text_mask` (B, L) is true where there is a token. Where `instructed` (B) is false only BOS of the
        prefix exists, and positions follow it.
        """
        known, length = prefix.keys_values.shape[-2], input_ids.shape[1]
        refuse_beyond_window(known + length)
        first = torch.where(instructed, known, 1)  # (B)
        rotation = self.rotation(first[:, None] + torch.arange(length, device=input_ids.device))
        bias = mask_scores(text_mask, instructed, known)
        states, _ = self.walk(input_ids, prefix.keys_values, rotation, bias)
        return torch.cat((prefix.bos.expand(states.shape[0], -1, -1), states), dim=1)

    @torch.no_grad()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """What to remember of the token ids `ids`, BOS first."""
        refuse_beyond_window(len(ids))
        tokens = torch.tensor([list(ids)], device=self.embedding.weight.device)  # (1, P)
        nothing = self.embedding.weight.new_empty(
            self.config.depth, 2, 1, self.config.kv_heads, 0, self.config.head_dim
        )
        everything = torch.ones_like(tokens, dtype=torch.bool)
        rotation = self.rotation(torch.arange(len(ids), device=tokens.device)[None])
        states, keys_values = self.walk(tokens, nothing, rotation, mask_scores(everything, everything[:, 0], 0))
        return Prefix(keys_values, states[:, :1])

    def walk(self, ids: Tensor, past: Tensor, rotation: Rotation, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Final states (B, L, D) of tokens, and their keys and values in every layer."""
        x = self.embedding(ids)
        x = x * torch.full((), self.config.dim**0.5, dtype=x.dtype, device=x.device)  # Gemma rounds this factor, too
        rotation = (rotation[0].to(x.dtype), rotation[1].to(x.dtype))
        memories = []
        for layer, held in zip(self.layers, past.unbind(), strict=True):
            x, own = layer(x, held, rotation, bias)
            memories.append(own)
        return self.norm(x), torch.stack(memories)

    def rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines, each (B, 1, L, head_dim), for positions (B, L)."""
        exponents = torch.arange(0, self.config.head_dim, 2, device=positions.device).float() / self.config.head_dim
        angles = positions[:, None, :, None].float() / self.config.rope_theta**exponents
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair (i, i + half) of x (B, heads, L, head_dim) by the angle of its position."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def mask_scores(text_mask: Tensor, instructed: Tensor, known: int) -> Tensor:
    """What to add to scores (B, kv_heads, group, L, known + L) so that each token sees only what precedes it."""
    length, device = text_mask.shape[1], text_mask.device
    is_bos = torch.arange(known, device=device) == 0
    held = (instructed[:, None] | is_bos)[:, None].expand(-1, length, -1)  # (B, L, known)
    places = torch.arange(length, device=device)
    own = text_mask[:, None] & (places <= places[:, None])  # (B, L, L)
    seen = torch.cat((held, own), dim=-1)[:, None, None]
    return torch.where(seen, 0.0, MASKED)


def refuse_beyond_window(length: int) -> None:
    """Raise when windowed layers would matter; an exported graph is fed by rules that keep texts short."""
    if not torch.compiler.is_compiling() and length > WINDOW:
        raise UsageError(f"a text of {length} tokens exceeds the {WINDOW} that are encoded; shorten it")
