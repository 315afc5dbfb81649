import math

import pytest
import torch
from torch import nn

from coin_export.encode.spread import spreads


def test_it_is_the_standard_deviation_between_the_originals() -> None:
    models = [nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)]
    with torch.no_grad():
        for value, model in zip((1.0, 2.0, 6.0), models, strict=True):
            model.weight.fill_(value)
            model.bias.fill_(7.0)
    assert spreads(models) == {"weight": pytest.approx(math.sqrt(7)), "bias": 0.0}


def test_elements_that_are_equal_in_all_do_not_count() -> None:
    """Rows of an embedding for tokens that no training has shown."""
    models = [nn.Embedding(50, 2), nn.Embedding(50, 2)]
    with torch.no_grad():
        models[1].load_state_dict(models[0].state_dict())
        models[1].weight[7] += 0.5
    assert spreads(models) == {"weight": pytest.approx(0.5 / math.sqrt(2))}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    models = [nn.Linear(64, 64).to(dtype), nn.Linear(64, 64).to(dtype)]
    with torch.no_grad():
        for value, model in zip((200.0, 600.0), models, strict=True):
            model.weight.fill_(value)  # the sum of squares is beyond float16
    assert spreads(models)["weight"] == pytest.approx(400 / math.sqrt(2))


def test_a_single_original_has_none() -> None:
    assert set(spreads([nn.Linear(3, 2)]).values()) == {0.0}
