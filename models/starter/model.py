"""The network: a Llama decoder of 2.6M parameters, tied output, rotary pairs interleaved as llama.cpp has them."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as fn
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 4096
    width: int = 192
    layers: int = 4
    heads: int = 3
    hidden: int = 512
    rope_base: float = 1e7
    context: int = 2048
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Pointer(nn.Module):  # type: ignore[misc]  # torch is not checked
    """Hidden states of a token sequence; a label's logit is its embedding times the state of the answer token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.zeros(shape.vocabulary, shape.width))
        self.final_norm = nn.Parameter(torch.full((shape.width,), 0.15))
        self.layers = nn.ModuleList(_layer(shape) for _ in range(shape.layers))
        pairs = torch.arange(0, shape.head_width, 2).float() / shape.head_width
        self.register_buffer("frequency", shape.rope_base**-pairs, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """tokens, positions: int64 [n]. mask: float [n, n] added to attention, None for causal. Returns [n, width]."""
        angles = positions[:, None].float() * self.frequency
        cosine, sine = angles.cos(), angles.sin()
        x = fn.embedding(tokens, self.embedding)
        for layer in self.layers:
            assert isinstance(layer, nn.ParameterDict)
            x = x + self._attend(layer, self._norm(x, layer["attention_norm"]), cosine, sine, mask)
            z = self._norm(x, layer["ffn_norm"])
            x = x + fn.linear(fn.silu(fn.linear(z, layer["gate"])) * fn.linear(z, layer["up"]), layer["down"])
        return self._norm(x, self.final_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return fn.rms_norm(x, (self.shape.width,), weight, self.shape.epsilon)

    def _attend(self, layer: nn.ParameterDict, z: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        n, heads, head_width = z.shape[0], self.shape.heads, self.shape.head_width

        def split(weight: Tensor) -> Tensor:
            return fn.linear(z, weight).view(n, heads, head_width).transpose(0, 1)

        v = split(layer["v"])
        q = rotate(split(layer["q"]), cosine, sine).to(v.dtype)
        k = rotate(split(layer["k"]), cosine, sine).to(v.dtype)
        bias = None if mask is None else mask.to(v.dtype)[None, None]
        out = fn.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, is_causal=bias is None)
        return fn.linear(out[0].transpose(0, 1).reshape(n, self.shape.width), layer["o"])


def _layer(shape: Shape) -> nn.ParameterDict:
    d, h = shape.width, shape.hidden
    sizes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "gate": (h, d), "up": (h, d), "down": (d, h)}
    parameters = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    parameters["attention_norm"] = nn.Parameter(torch.ones(d))
    parameters["ffn_norm"] = nn.Parameter(torch.ones(d))
    return nn.ParameterDict(parameters)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs; x: [heads, n, head_width]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2)


def save(model: Pointer, path: str) -> None:
    torch.save({"shape": asdict(model.shape), "weights": model.state_dict()}, path)


def load(path: str) -> Pointer:
    saved = torch.load(path, weights_only=True)
    model = Pointer(Shape(**saved["shape"]))
    model.load_state_dict(saved["weights"])
    return model
