"""Networks that use their layers in ways that the fast path may take or must leave, and two whole ones."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Block(nn.Module):
    """A body and a layer that its subclasses use in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.use(torch.tanh(self.body(x)))
        return out

    def use(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class CalledTwice(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
        return out


class UsedOutside(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


class UsedInAndOutside(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + self.layer.bias + self.layer.weight.sum()
        return out


class CalledInVain(Block):
    """The recorded call is the one that does not matter."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        return F.linear(x, self.layer.weight, self.layer.bias)


class Transposed(Block):
    """The layer's first dimension is not the points, though as long where there are four points."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer((x[:, :, None] * torch.ones(4)).transpose(0, 1)).transpose(0, 1).flatten(1)
        return out


class Folded(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x[:, :, None] * torch.arange(4.0).to(x)).reshape(-1, 4)
        out: torch.Tensor = self.layer(tokens).reshape(len(x), -1)
        return out


class OwnParameter(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.scale * self.layer(x)
        return out


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.square(), self.bias)


class Subclassed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer = OwnLinear(4, 4)

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Plain(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Overwritten(Plain):
    """What the first layer saw is changed after it saw it; autograd does not look at the inputs of a first layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = x.clone()
        hidden = self.body(given)
        given.zero_()
        return self.use(hidden)


class InPlaceActivation(Block):
    """Inplace on the output of a layer, which is a view where there are tokens."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.layer(x[:, None].repeat(1, 3, 1))
        out: torch.Tensor = tokens.relu_().flatten(1)
        return out


class Unused(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        return x


class CrossAttention(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)  # type: ignore[assignment]  # tests only

    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, None] * torch.arange(1.0, 4.0)[:, None].to(x)
        out: torch.Tensor = self.layer(tokens, tokens.cos(), tokens.sin())[0].flatten(1)
        return out


class SeparateProjections(nn.Module):
    """Self-attention by hand; a bias of the keys moves all scores of a query alike, so its gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.body(x))
        heads = [layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        return F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).flatten(2).mean(1)


def tied() -> nn.Module:
    module = Plain()
    module.layer.weight = module.body.weight
    return module


def hooked() -> nn.Module:
    module = Plain()
    module.layer.register_forward_hook(lambda _module, _args, output: 2.0 * output)
    return module


def replaced() -> nn.Module:
    module = Plain()
    layer = module.layer
    vars(layer)["forward"] = lambda x: F.linear(x, layer.weight.cos(), layer.bias)
    return module


def parametrized() -> nn.Module:
    module = Plain()
    parametrizations.weight_norm(module.layer)
    return module


class Residual(nn.Module):
    def __init__(self, wide: int, tall: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(wide, tall, 3, stride, 1, bias=False), nn.BatchNorm2d(tall))
        self.second = nn.Sequential(nn.Conv2d(tall, tall, 3, 1, 1, bias=False), nn.BatchNorm2d(tall))
        self.short = nn.Sequential(nn.Conv2d(wide, tall, 1, stride, bias=False), nn.BatchNorm2d(tall))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.second(F.relu(self.first(x), inplace=True)) + self.short(x))


def resnet() -> nn.Module:
    blocks = [Residual(4, 4, 1), Residual(4, 6, 2)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(9, 4), encoder, nn.Flatten(), nn.Linear(20, 3))
