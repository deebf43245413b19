"""Networks for sequences, with an image's rows as tokens: transformers and recurrent ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, ROWS, CLASSES = 32, 8, 10


class _Tokens(nn.Module):
    """Rows of an 8 x 8 image as tokens [n, 8, WIDTH], each with its place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(ROWS, WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x.unflatten(1, (ROWS, ROWS))) + self.place


class _Block(nn.Module):
    """A pre-norm transformer block with an MLP of GELU or SwiGLU, as they are commonly written."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, 4 * WIDTH) if form == "swiglu" else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.mixed(seen.transpose(1, 2).flatten(2))
        z = self.norm2(x)
        if self.gate is None:
            return x + self.down(nn.functional.gelu(self.up(z)))
        return x + self.down(nn.functional.silu(self.gate(z)) * self.up(z))


class Blocks(nn.Module):
    """A small transformer of blocks written by hand; `form` is "gelu" or "swiglu"."""

    def __init__(self, form: str, seed: int = 0) -> None:
        super().__init__()
        self.tokens, self.blocks = _Tokens(), nn.Sequential(*(_Block(form) for _ in range(1 + seed // 2 % 3)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x))).mean(1))


class Encoder(nn.Module):
    """The same of torch's own layers, with ReLU or GELU by the seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        activation = ("relu", "gelu")[seed // 2 % 2]
        layers = [
            nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, dropout=0.1, activation=activation, batch_first=True, norm_first=True
            )
            for _ in range(1 + seed // 2 % 3)
        ]
        self.tokens, self.layers, self.head = _Tokens(), nn.Sequential(*layers), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM or GRU over the rows, and a linear head on its last state."""

    def __init__(self, form: Any, seed: int = 0) -> None:
        super().__init__()
        self.tokens, self.recurrent = _Tokens(), form(WIDTH, 48, num_layers=1 + seed // 2 % 2, batch_first=True)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.tokens(x))[0][:, -1])
