import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions, answered, augment, can_augment, can_mix
from coin_export.encode.average import AverageOptions
from coin_export.encode.cost import Passes
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import encode
from coin_export.encode.teachers import Teachers, working_inputs
from tests.encode.cases import originals_of, output_error


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_integers_beside_numbers_are_never_touched() -> None:
    inputs = {"tokens": torch.arange(12).reshape(3, 4), "x": torch.randn(3, 4, generator=seeded())}
    assert not can_augment(inputs, AugmentationOptions())
    assert can_augment({"x": inputs["x"]}, AugmentationOptions())
    assert not can_augment({"x": inputs["x"]}, AugmentationOptions(mixed=0))
    assert can_augment({"x": torch.zeros(2, 1, 28, 28)}, AugmentationOptions(mixed=0))
    assert can_augment({"x": torch.zeros(2, 1, 28, 28)}, AugmentationOptions(mixed=0, shift=0))
    assert not can_augment({"x": torch.zeros(2, 1, 28, 28)}, AugmentationOptions(mixed=0, shift=0, warp=0))
    assert not can_augment({"x": torch.zeros(2, 1, 6, 6)}, AugmentationOptions(mixed=0))


@settings(max_examples=30, deadline=None)
@given(points=st.integers(1, 9), seed=st.integers(0, 1000))
def test_mixtures_are_convex_and_alike_in_all_inputs(points: int, seed: int) -> None:
    x = torch.randn(points, 3, generator=seeded(seed))
    mixed = augment({"x": x, "y": 2 * x[:, None]}, AugmentationOptions(mixed=1.0), seeded(seed))
    torch.testing.assert_close(mixed["y"], 2 * mixed["x"][:, None])
    assert bool(((x.min(0).values - 1e-5 <= mixed["x"]) & (mixed["x"] <= x.max(0).values + 1e-5)).all())


def test_about_the_chosen_share_is_mixed() -> None:
    x = torch.randn(4000, 2, generator=seeded())
    mixed = augment({"x": x}, AugmentationOptions(mixed=0.3), seeded(1))["x"]
    share = float((mixed != x).any(1).float().mean())
    assert 0.25 < share < 0.35


def test_images_are_shifted_by_whole_pixels_within_reach() -> None:
    image = torch.zeros(200, 2, 20, 10)
    image[:, :, 8, 4] = 1.0
    shifted = augment({"x": image}, AugmentationOptions(mixed=0, shift=0.1, warp=0), seeded())["x"]
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    _, rows, columns = shifted[:, 0].nonzero(as_tuple=True)
    assert len(rows) == 200
    assert set(rows.tolist()) == set(range(6, 11))
    assert set(columns.tolist()) == {3, 4, 5}


@pytest.mark.parametrize(("height", "width"), [(40, 40), (24, 60)])
def test_images_are_zoomed_and_turned_about_their_middle(height: int, width: int) -> None:
    """A blurred spot to the right of the middle: where it ends up says by how much."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rows, columns = rows - height / 2, columns - width / 2
    spot = torch.exp(-((columns - 6) ** 2 + rows**2) / 4).expand(300, 1, -1, -1)
    options = AugmentationOptions(mixed=0, shift=0, warp=0.3)
    warped = augment({"x": spot, "y": 2 * spot}, options, seeded())
    torch.testing.assert_close(warped["y"], 2 * warped["x"])
    weight = warped["x"][:, 0] / warped["x"].sum((1, 2, 3))[:, None, None]
    x, y = (weight * columns).sum((1, 2)), (weight * rows).sum((1, 2))
    distance, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    assert 6 / 1.31 < float(distance.min()) < 4.8 and 8.2 < float(distance.max()) < 6 / 0.69
    assert -0.31 < float(angle.min()) < -0.27 and 0.27 < float(angle.max()) < 0.31


def test_where_nothing_is_mixed_shifted_or_warped_points_stay_as_they_are() -> None:
    x = torch.randn(5, 3, 20, 20, generator=seeded())
    assert torch.equal(augment({"x": x}, AugmentationOptions(mixed=0, shift=0, warp=0), seeded())["x"], x)


def test_double_precision_stays() -> None:
    x = torch.randn(5, 3, 20, 20, generator=seeded()).double()
    assert augment({"x": x}, AugmentationOptions(), seeded())["x"].dtype == torch.float64


def test_the_border_is_repeated() -> None:
    image = torch.ones(8, 1, 20, 20)
    torch.testing.assert_close(augment({"x": image}, AugmentationOptions(), seeded())["x"], image)


@settings(max_examples=30, deadline=None)
@given(points=st.integers(1, 9), seed=st.integers(0, 1000))
def test_rows_of_integers_take_positions_from_one_other_point(points: int, seed: int) -> None:
    """The token says whose it is and where it stood; the mask follows it."""
    ids = torch.arange(points)[:, None] * 100 + torch.arange(12)
    inputs = {"ids": ids, "mask": ids % 7 == 0}
    assert can_augment(inputs, AugmentationOptions()) and not can_mix(inputs, AugmentationOptions())
    exchanged = augment(inputs, AugmentationOptions(exchanged=1.0), seeded(seed))
    assert torch.equal(exchanged["ids"] % 100, ids % 100)
    assert torch.equal(exchanged["mask"], exchanged["ids"] % 7 == 0)
    for own, row in enumerate((exchanged["ids"] // 100).tolist()):
        assert len({*row, own}) <= 2


def test_about_the_chosen_share_takes_a_quarter_of_its_positions() -> None:
    ids = torch.arange(2000)[:, None].expand(-1, 64)
    changed = augment({"ids": ids}, AugmentationOptions(exchanged=0.6), seeded())["ids"] != ids
    touched = changed.any(1)
    assert 0.55 < float(touched.float().mean()) < 0.65
    assert 0.22 < float(changed[touched].float().mean()) < 0.28


class Pooled(torch.nn.Module):
    """The mean of the tokens that the mask shows; NaN if it shows none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(50, 3), torch.nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shown = self.embedding(ids) * mask[..., None]
        out: torch.Tensor = self.head(shown.sum(1) / mask.sum(1, keepdim=True))
        return out


def sparse_rows(points: int) -> CalibrationInputs:
    """Rows of which the mask shows one position, here and there."""
    rng = np.random.default_rng(0)
    mask = np.zeros((points, 4), np.int64)
    mask[np.arange(points), rng.integers(4, size=points)] = 1
    return CalibrationInputs({"ids": rng.integers(50, size=(points, 4)), "mask": mask})


def test_a_point_that_cannot_be_answered_any_more_is_left_as_it_was() -> None:
    calibration = sparse_rows(200)
    teachers = Teachers(originals_of(Pooled(), Pooled(), calibration=calibration), Passes())
    plain = working_inputs(calibration)
    augmented = augment(plain, AugmentationOptions(exchanged=1.0), seeded())
    hidden = augmented["mask"].sum(1) == 0
    assert 0 < int(hidden.sum()) < 100
    kept, (answers,) = answered(teachers, augmented, plain)
    assert answers.isfinite().all()
    for name, tensor in kept.items():
        assert torch.equal(tensor[hidden], plain[name][hidden])
        assert torch.equal(tensor[~hidden], augmented[name][~hidden])


def test_rows_with_masks_that_can_come_to_hide_all_are_refined() -> None:
    torch.manual_seed(0)
    calibration = sparse_rows(60)
    originals = originals_of(Pooled(), Pooled(), calibration=calibration)
    found = encode(originals, [0.5, 0.5], calibration, RefineOptions(budget=2_000))
    average = encode(originals, [0.5, 0.5], calibration, AverageOptions()).state_dict
    error = output_error(found.state_dict, originals, [0.5, 0.5], calibration)
    assert error < output_error(average, originals, [0.5, 0.5], calibration)


def test_integers_of_other_shapes_are_left_alone() -> None:
    rows = torch.zeros(3, 4, dtype=torch.long)
    for other in (torch.zeros(3, dtype=torch.long), rows[:, :2], rows[..., None], torch.zeros(3, 4)):
        assert not can_augment({"ids": rows, "other": other}, AugmentationOptions())
    assert not can_augment({"ids": rows}, AugmentationOptions(exchanged=0))
