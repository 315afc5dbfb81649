import pytest
import torch
from torch import nn

from coin_export.encode.architecture import coded_module
from coin_export.encode.average import AverageOptions
from coin_export.encode.registry import encode
from coin_export.model.copying import copied
from tests.encode.cases import normal_points, originals_of, output_error, same_bytes

BETA = [0.5, 0.5]


def made(make: str, seed: int) -> nn.Module:
    """A layer with its own weight, trained for some steps as far as its vectors can tell."""
    torch.manual_seed(seed)
    layer = nn.Conv1d(3, 5, 1)
    if make == "hook":
        nn.utils.spectral_norm(layer)
    else:
        nn.utils.parametrizations.spectral_norm(layer)
    network = nn.Sequential(nn.Unflatten(1, (3, 1)), layer, nn.Flatten(), nn.Linear(5, 2))
    for _ in range(50):
        network.train()(torch.randn(2, 3))
    return network.eval()


@pytest.mark.parametrize("make", ["parametrization", "hook"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_the_coded_weight_has_a_spectral_norm_of_one(make: str) -> None:
    originals = originals_of(*(made(make, seed) for seed in (1, 2)))
    found = encode(originals, BETA, normal_points(), AverageOptions()).state_dict
    coded = coded_module(originals[0].module, found)
    coded(torch.ones(1, 3))
    weight = coded.get_submodule("1").weight
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(torch.linalg.matrix_norm(weight.flatten(1), 2), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_a_layer_that_stands_in_two_places_has_one_pair_of_vectors() -> None:
    def twice(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        return nn.Sequential(layer, nn.Tanh(), layer)

    found = encode(originals_of(twice(1), twice(2)), BETA, normal_points(), AverageOptions()).state_dict
    first, second = (found[f"{place}.parametrizations.weight.0._u"] for place in (0, 2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("make", ["parametrization", "hook"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_layers_that_all_share_keep_their_vectors(make: str) -> None:
    one = made(make, 1)
    other = copied(one)
    with torch.no_grad():
        other.get_parameter("3.bias").add_(1)
    originals = originals_of(one, other)
    found = encode(originals, BETA, normal_points(), AverageOptions()).state_dict
    shared = {name: tensor for name, tensor in one.state_dict().items() if name != "3.bias"}
    assert same_bytes({name: found[name] for name in shared}, shared)
    assert output_error(found, originals, BETA, normal_points()) < 1e-10
