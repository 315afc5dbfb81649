import copy

import pytest
import torch
from torch import nn

from coin_export.errors import ModelError
from coin_export.model.functional import Slots, check_differentiable


class Repeated(nn.Module):
    """One layer in three places, as ALBERT has it, and its weight under a name of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.first, self.layers, self.head = layer, nn.ModuleList([layer, layer]), nn.Linear(3, 2)
        self.table = layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        for layer in self.layers:
            x = torch.tanh(layer(x) @ self.table)
        out: torch.Tensor = self.head(x)
        return out


def test_a_module_that_stands_in_several_places_is_called_with_other_tensors_and_left_as_it_was() -> None:
    module, x = Repeated().eval(), torch.randn(4, 3)
    other = Repeated().eval()
    before, own = copy.deepcopy(module.state_dict()), dict(module.named_parameters())
    returned = Slots(module).call({name: tensor.detach() for name, tensor in other.named_parameters()}, [x])
    assert isinstance(returned, torch.Tensor)
    torch.testing.assert_close(returned, other(x))
    assert all(now is own[name] for name, now in module.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.layers[1].weight is module.first.weight is module.table


def test_what_is_not_given_stays_the_modules_own() -> None:
    module, x = Repeated().eval(), torch.randn(4, 3)
    returned = Slots(module).call({"head.bias": torch.zeros(2)}, [x])
    assert isinstance(returned, torch.Tensor)
    torch.testing.assert_close(returned, module(x) - module.head.bias)


class Detached(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).detach()


def test_outputs_that_autograd_cannot_follow_are_refused() -> None:
    frozen = nn.Linear(3, 2).requires_grad_(False)
    check_differentiable(frozen, {"x": torch.ones(1, 3)})
    assert not frozen.weight.requires_grad
    with pytest.raises(ModelError, match=r"no output depends on any weight.* torch\.no_grad or detach"):
        check_differentiable(Detached(3, 2), {"x": torch.ones(1, 3)})
