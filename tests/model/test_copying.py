import copy
import threading

import pytest
import torch
from torch import nn

from coin_export.errors import ModelError
from coin_export.model.copying import copied, sharing_copy


class Keeping(nn.Linear):
    """Keeps what its last forward pass made, as for plots or for a loss."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.last: torch.Tensor | None = None
        self.all: dict[str, list[torch.Tensor]] = {"losses": []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        self.last = output
        self.all["losses"].append(output.sum())
        return output


def used() -> Keeping:
    module = Keeping()
    module(torch.ones(1, 3))
    return module


def test_what_autograd_left_on_a_module_is_copied_as_numbers() -> None:
    module = used()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    copy_ = copied(module)
    assert isinstance(copy_, Keeping) and copy_.last is not None and module.last is not None
    assert copy_.last.is_leaf and torch.equal(copy_.last, module.last)
    assert copy_.all["losses"][0].is_leaf and copy_.all["losses"][0] is not module.all["losses"][0]
    assert module.last.grad_fn is not None
    assert copy_.weight is not module.weight and torch.equal(copy_.weight, module.weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_hooks_compute_are_computed_anew_in_the_copy() -> None:
    module = nn.utils.weight_norm(nn.Linear(3, 2))
    module(torch.ones(1, 3))
    copy_ = copied(module)
    with torch.no_grad():
        copy_.get_parameter("weight_g").mul_(2)
    bias = module.get_parameter("bias")
    x = torch.ones(1, 3)
    torch.testing.assert_close(copy_(x) - bias, 2 * (module(x) - bias))


def test_a_sharing_copy_has_the_same_weights_and_nothing_else() -> None:
    module = nn.Sequential(Keeping(), nn.BatchNorm1d(2)).eval()
    copy_ = sharing_copy(module)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert dict([*copy_.named_parameters(), *copy_.named_buffers()])[name] is tensor
    copy_.train()
    copy_.get_submodule("0")(torch.ones(1, 3))
    copy_.get_submodule("0").register_forward_hook(lambda *_: None)
    first = module[0]
    assert isinstance(first, Keeping)
    assert first.last is None and not first.all["losses"] and not first._forward_hooks and not module.training


def test_recurrent_layers_use_the_weights_that_are_shared() -> None:
    module = nn.LSTM(3, 2, batch_first=True)
    copy_, x = sharing_copy(module), torch.ones(1, 4, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    assert torch.equal(copy_(x)[0], module(x)[0])


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = nn.Linear(3, 2)
    vars(module)["lock"] = threading.Lock()
    for make in (copied, sharing_copy):
        with pytest.raises(ModelError, match=r"a Linear cannot be copied: TypeError: .*lock"):
            make(module)
