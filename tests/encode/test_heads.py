"""Heads of different sizes: padded with zeros for coding, and nothing else changed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from coin_export.encode.architecture import check_same_architecture
from coin_export.encode.average import AverageOptions
from coin_export.encode.heads import pad_heads
from coin_export.encode.registry import encode
from coin_export.errors import ArchitectureError
from coin_export.model.signature import Original
from tests.encode.cases import normal_points, originals_of
from tests.reference.networks import TwoHeads

IMAGES = normal_points(8, 3, 4, 4)


def classifier(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, classes))


def segmenter(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 1))


def outputs(original: Original, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = original.module(x)
    return found


def test_a_padded_original_answers_the_same_followed_by_zeros() -> None:
    originals = originals_of(classifier(2, 1), classifier(6, 2), classifier(3, 3))
    padded = pad_heads(originals, normal_points())
    check_same_architecture(padded)
    assert padded[1] is originals[1]
    x = torch.randn(7, 3)
    for original, wide, classes in zip(originals, padded, (2, 6, 3), strict=True):
        assert wide.name == original.name and wide.signature.outputs[0].shape == (6,)
        found = outputs(wide, x)
        torch.testing.assert_close(found[:, :classes], outputs(original, x))
        assert not found[:, classes:].any()
        assert original.module.state_dict()["2.weight"].shape == (classes, 5)


def test_the_padded_dimension_is_where_the_outputs_differ() -> None:
    originals = originals_of(segmenter(5), segmenter(2), calibration=IMAGES)
    padded = pad_heads(originals, IMAGES)
    assert padded[1].signature.outputs[0].shape == (5, 4, 4)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(outputs(padded[1], x)[:, :2], outputs(originals[1], x))
    assert not outputs(padded[1], x)[:, 2:].any()


@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_heads_whose_weights_are_normalised_are_padded(normalise: Callable[[nn.Linear], nn.Module]) -> None:
    originals = originals_of(*(nn.Sequential(nn.Linear(3, 5), normalise(nn.Linear(5, classes))) for classes in (2, 4)))
    padded, x = pad_heads(originals, normal_points()), torch.randn(7, 3)
    torch.testing.assert_close(outputs(padded[0], x)[:, :2], outputs(originals[0], x))
    assert not outputs(padded[0], x)[:, 2:].any()
    encode(padded, [0.5, 0.5], normal_points(), AverageOptions())


def test_what_has_no_rows_is_left_alone() -> None:
    """BatchNorm counts its batches in a single number."""
    networks = (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, classes)) for classes in (2, 4))
    originals = originals_of(*networks)
    padded, x = pad_heads(originals, normal_points()), torch.randn(7, 3)
    torch.testing.assert_close(outputs(padded[0], x)[:, :2], outputs(originals[0], x))


def test_each_of_several_heads_is_padded() -> None:
    class Narrow(TwoHeads):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 1)

    wide, narrow = originals_of(TwoHeads(), Narrow())
    padded = pad_heads([narrow, wide], normal_points())
    check_same_architecture(padded)
    assert [spec.shape for spec in padded[0].signature.outputs] == [(2,), (2, 3)]


def test_a_padded_head_is_averaged_with_zeros() -> None:
    originals = originals_of(classifier(6, 1), classifier(2, 2))
    state = encode(pad_heads(originals, normal_points()), [0.25, 0.75], normal_points(), AverageOptions()).state_dict
    wide, narrow = (original.module.state_dict()["2.weight"] for original in originals)
    torch.testing.assert_close(state["2.weight"][:2], 0.25 * wide[:2] + 0.75 * narrow)
    torch.testing.assert_close(state["2.weight"][2:], 0.25 * wide[2:])


def test_frozen_parameters_stay_frozen() -> None:
    wide, narrow = classifier(6), classifier(2)
    narrow.get_parameter("0.weight").requires_grad_(False)
    padded = pad_heads(originals_of(wide, narrow), normal_points())
    assert not padded[1].module.get_parameter("0.weight").requires_grad
    assert padded[1].module.get_parameter("2.weight").requires_grad


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda: classifier(3), lambda: classifier(3)),
        (lambda: classifier(3), lambda: nn.Linear(3, 2)),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
            lambda: nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)),
        ),
    ],
    ids=["equal", "other architectures", "another width inside"],
)
def test_all_else_is_left_to_the_check_of_architectures(
    left: Callable[[], nn.Module], right: Callable[[], nn.Module]
) -> None:
    originals = originals_of(left(), right())
    assert all(a is b for a, b in zip(pad_heads(originals, normal_points()), originals, strict=True))


@pytest.mark.parametrize("after", [nn.Softmax(1), nn.Sigmoid()])
def test_what_follows_the_head_must_leave_zeros_alone(after: nn.Module) -> None:
    originals = originals_of(nn.Sequential(classifier(3), after), nn.Sequential(classifier(2), after))
    with pytest.raises(
        ArchitectureError, match=r"'model_1' is not followed by zeros .* end the models at their logits"
    ):
        pad_heads(originals, normal_points())
