"""Models with symmetries that can be counted by hand, and the counts."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


def shaken(model, seed=0):
    """Away from the initialisation, where zero biases and unit gains hide broken symmetries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.mul_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, high, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def mlp(*sizes, activation=nn.ReLU):
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(n_in, n_out), *([activation()] if i + 2 < len(sizes) and activation else [])]
    return nn.Sequential(*layers)


def vgg(batch_norm=False):
    layers, n = [], 3
    for width in (16, "M", 32, "M", 64, 64, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(n, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU())
        n = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


def resnet18(width=64, classes=10):
    widths = [width, 2 * width, 4 * width, 8 * width]
    layers, n = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], width
    for stage, w in enumerate(widths):
        layers += [Residual(n, w, 1 if stage == 0 else 2), Residual(w, w, 1)]
        n = w
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, classes))


def rotated(x):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 100.0 ** (torch.arange(half) / half)
    cos, sin = (torch.cat([f(angles), f(angles)], -1).to(x.dtype) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Attention(nn.Module):
    def __init__(self, d, heads, kv_heads=None, rotary=False, qk_norm=False, bias=True, manual=False):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads or heads, d // heads
        self.rotary, self.manual = rotary, manual
        self.q = nn.Linear(d, d, bias=bias)
        self.k = nn.Linear(d, self.kv_heads * self.size, bias=bias)
        self.v = nn.Linear(d, self.kv_heads * self.size, bias=bias)
        self.o = nn.Linear(d, d, bias=bias)
        self.q_norm = nn.LayerNorm(self.size) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.size) if qk_norm else nn.Identity()

    def forward(self, x):
        n, t, d = x.shape
        q = self.q_norm(self.q(x).view(n, t, self.heads, self.size)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(n, t, self.kv_heads, self.size)).transpose(1, 2)
        v = self.v(x).view(n, t, self.kv_heads, self.size).transpose(1, 2)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        if self.kv_heads != self.heads:
            times = self.heads // self.kv_heads
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        if self.manual:
            scores = q @ k.transpose(-2, -1) / self.size**0.5
            mask = torch.ones(t, t, dtype=torch.bool).tril()
            y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(n, t, d))


class Packed(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, d, heads, rotary=False):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).split(d, -1))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    def __init__(self, d, heads, rotary=False):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Packed(d, heads, rotary)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary=50, length=12, d=32, heads=4, blocks=2, tied=True, rotary=False):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, d)
        self.wpe = None if rotary else nn.Embedding(length, d)
        self.blocks = nn.ModuleList([Block(d, heads, rotary) for _ in range(blocks)])
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class Encoder(nn.Module):
    def __init__(self, norm_first=False, activation="relu"):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, activation, batch_first=True, norm_first=norm_first)
        self.embed = nn.Linear(8, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.depthwise = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.gamma = nn.Parameter(torch.ones(d))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext(d=16):
    return nn.Sequential(
        nn.Conv2d(3, d, 4, 4), ConvNeXtBlock(d), ConvNeXtBlock(d), Pooled(), nn.LayerNorm(d), nn.Linear(d, 10)
    )


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class UNet(nn.Module):
    """Two scales, with a transposed convolution and a connection across."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up, self.join, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        up = F.relu(self.up(F.relu(self.coarse(fine))))
        return self.out(F.relu(self.join(torch.cat([up, fine], 1))))


class VisionTransformer(nn.Module):
    """Patches, a class token and positions."""

    def __init__(self, d=16):
        super().__init__()
        self.patches = nn.Conv2d(3, d, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, 17, d))
        self.block, self.norm, self.head = Block(d, 4), nn.LayerNorm(d), nn.Linear(d, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.block(x))[:, 0])


class Mixer(nn.Module):
    """One network along the tokens, one along the channels."""

    def __init__(self, n=6, d=8):
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(d), mlp(n, 10, n)
        self.norm2, self.channels, self.head = nn.LayerNorm(d), mlp(d, 12, d), nn.Linear(d, 3)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).mT).mT
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class GraphConvolution(nn.Module):
    """The graph is a buffer: a constant, which no symmetry may move."""

    def __init__(self, nodes=7):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("graph", torch.rand(nodes, nodes) / nodes)

    def forward(self, x):
        return self.graph @ self.second(F.relu(self.graph @ self.first(x)))


class GLU(nn.Module):
    def __init__(self, function, n_in=6, n=9, n_out=4):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(n_in, n), nn.Linear(n_in, n), nn.Linear(n, n_out)
        self.function = function

    def forward(self, x):
        return self.down(self.function(self.gate(x)) * self.up(x))


class LoRA(nn.Module):
    def __init__(self, rank=3):
        super().__init__()
        self.base = nn.Linear(8, 12)
        self.base.requires_grad_(False)
        self.a, self.b = nn.Linear(8, rank, bias=False), nn.Linear(rank, 12, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.gelu(self.base(x) + self.b(self.a(x))))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.shared(x).relu()
        x = x + self.shared(x).relu()
        return self.last(x)


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(6, 12), kind(12, 5, batch_first=True, **options), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.cell(self.first(x).relu())[0])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.one(x).relu()
        if x.sum().item() > 0:
            x = self.two(x).tanh()
        return self.last(x)


class WeightNormed(nn.Module):
    def __init__(self, wrap=nn.utils.parametrizations.weight_norm):
        super().__init__()
        self.a, self.b, self.c = wrap(nn.Linear(5, 7)), wrap(nn.Linear(7, 6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 6)

    def forward(self, x):
        return F.normalize(self.b(self.a(x).relu()), dim=-1)


class RMS(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Llama(nn.Module):
    """Rotary grouped-query attention, SwiGLU, root mean square norms; d 16, 4 heads, 2 key/value heads, width 24."""

    def __init__(self, norm=RMS):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.norms = nn.ModuleList([norm(16) for _ in range(3)])
        self.attention = Attention(16, 4, 2, rotary=True, bias=False)
        self.mlp = GLU(F.silu, 16, 24, 16)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.last = nn.LSTMCell(5, 4), nn.GRUCell(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 4)
        g = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        return self.last(g)


class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(6, 8)), nn.Parameter(normal(6))

    def forward(self, x):
        return F.relu(F.linear(x, self.weight, self.bias)) @ self.weight


class Grouped(nn.Module):
    """Two branches concatenated into a convolution whose groups cut across them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.c, self.last = nn.Conv2d(9, 6, 3, groups=3), nn.Linear(24, 3)

    def forward(self, x):
        return self.last(F.relu(self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)))).flatten(1))


class Between(nn.Module):
    """A function, or an operation of two branches, between two linear layers: 6 to 8 to 4."""

    def __init__(self, function, two=False, width=8):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(6, 8) if two else None, nn.Linear(width, 4)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.a(x), self.b(x)) if self.b is not None else self.function(self.a(x)))


class WithParameter(nn.Module):
    """A parameter of its own between two linear layers: 6 to 8 to 4."""

    def __init__(self, function, *shape):
        super().__init__()
        self.a, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.p = nn.Parameter(normal(*shape, seed=5))
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.a(x), self.p))
