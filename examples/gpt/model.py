"""A plain decoder-only transformer and the sizes it comes in.

Nothing here knows about optimizers or data; the benchmarks train the same model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits of this many elements and more stay in the model's dtype on their way into the loss: an
# fp32 copy of them would be the largest tensor of the whole step.
_WIDENED_LOGITS = 1 << 28


class Shape(NamedTuple):
    """Width of the residual stream, number of blocks, heads per block."""

    width: int
    layers: int
    heads: int


SIZES: dict[str, Shape] = {
    "mini": Shape(192, 4, 6),
    "small": Shape(768, 12, 12),
    "medium": Shape(1024, 24, 16),
    "1.3B": Shape(2048, 24, 16),
    "2.7B": Shape(2560, 32, 32),
    "6.7B": Shape(4096, 32, 32),
}


class Block(nn.Module):
    """Causal self-attention and a four times wider MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_out(self._attend(self.attention_norm(x)))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def _attend(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each: batch, head, position, channel
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(-2)


class GPT(nn.Module):
    """Embedding, blocks, norm, and a head that is tied to the embedding.

    `context` is the longest sequence: it gives learned positions; 0 leaves positions out. With
    `recompute` a block keeps only its input for backward and runs its forward once more there.
    """

    def __init__(
        self, shape: Shape, vocabulary: int, *, context: int = 0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(context, shape.width) if context else None
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self._initialize(shape.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.size(1)]
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def _initialize(self, layers: int) -> None:
        # Every block adds to the residual stream twice; smaller last matrices keep its variance
        # independent of the depth.
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                is_last = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if is_last else 1.0))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy (nats per token) of `targets` after `inputs`, both batch x position."""
    logits = model(inputs).flatten(0, 1)
    if logits.numel() < _WIDENED_LOGITS:
        logits = logits.float()
    return F.cross_entropy(logits, targets.flatten())


@torch.no_grad()
def sample(model: GPT, prompt: bytes, *, length: int, context: int, seed: int) -> bytes:
    """Continues `prompt` by `length` bytes drawn at temperature 0.8."""
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    text = torch.tensor([list(prompt)], dtype=torch.long, device=device)
    for _ in range(length):
        logits = model(text[:, -context:])[:, -1].float() / 0.8
        choice = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        text = torch.cat([text, choice], dim=1)
    return bytes(text[0].tolist())
