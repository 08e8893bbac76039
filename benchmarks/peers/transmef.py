"""TransMEF (Qu et al., AAAI 2022): a convolution and a transformer branch on separate 256 x 256 blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 256
PATCH = 16
HEADS, HEAD_WIDTH, DEPTH = 16, 64, 12


def convolutions(*widths: int) -> nn.Sequential:
    """3x3 convolutions through the given widths, each followed by ReLU."""
    layers = []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Pre-norm self-attention; the products are explicit, as in the release, not one fused kernel."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.to_qkv(self.norm(x)).view(batch, tokens, 3, HEADS, HEAD_WIDTH)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-1, -2) * HEAD_WIDTH**-0.5, dim=-1)
        return self.to_out((weights @ value).transpose(1, 2).reshape(batch, tokens, HEADS * HEAD_WIDTH))


class FeedForward(nn.Sequential):
    def __init__(self, width: int, hidden: int):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Transformer(nn.Module):
    """16 x 16 patches of a block as 256 tokens, 12 layers, folded back to one channel."""

    def __init__(self):
        super().__init__()
        width = PATCH * PATCH
        self.embed = nn.Linear(width, width)
        self.attention = nn.ModuleList(Attention(width) for _ in range(DEPTH))
        self.feed_forward = nn.ModuleList(FeedForward(width, 1024) for _ in range(DEPTH))
        # The published file holds these two; no forward pass uses them.
        self.class_token = nn.Parameter(torch.randn(width))
        self.unused = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))
        for attention, feed_forward in zip(self.attention, self.feed_forward):
            tokens = tokens + attention(tokens)
            tokens = tokens + feed_forward(tokens)
        return F.fold(tokens.transpose(1, 2), x.shape[-2:], PATCH, stride=PATCH)


class TransMEF(nn.Module):
    channels = 1

    def __init__(self):
        super().__init__()
        self.transformer = Transformer()
        self.local = convolutions(1, 16, 16)
        self.encoder = convolutions(17, 32, 32, 48, 48)
        self.decoder = nn.Sequential(convolutions(48, 32, 32, 16, 16), nn.Conv2d(16, 1, 1))

    def encode(self, block: Tensor) -> Tensor:
        return self.encoder(torch.cat([self.local(block), self.transformer(block)], dim=1))

    def fuse_block(self, first: Tensor, second: Tensor) -> Tensor:
        """Fuse one (1, 1, 256, 256) block to whole grey levels, as the release writes each of them."""
        fused = self.decoder((self.encode(first) + self.encode(second)) / 2)
        return (fused * 255).round_().clamp_(0, 255) / 255

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        first, second = extend(first), extend(second)
        fused = torch.empty_like(first)
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                block = (..., slice(top, top + BLOCK), slice(left, left + BLOCK))
                fused[block] = self.fuse_block(first[block], second[block])
        return fused[..., :height, :width]


def extend(image: Tensor) -> Tensor:
    """Reflect the bottom and the right border until both sides are multiples of the block."""
    for axis in (-2, -1):
        size = image.shape[axis]
        position = torch.arange(size + BLOCK - size % BLOCK, device=image.device)
        period = max(2 * (size - 1), 1)
        position = position % period
        image = image.index_select(axis, torch.minimum(position, period - position))
    return image
