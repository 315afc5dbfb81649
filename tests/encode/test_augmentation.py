import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.encode.augmentation import AugmentationOptions, augment, can_augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_token_ids_are_never_touched() -> None:
    inputs = {"tokens": torch.arange(12).reshape(3, 4), "x": torch.randn(3, 5, generator=seeded())}
    assert not can_augment(inputs, AugmentationOptions())
    assert can_augment({"x": inputs["x"]}, AugmentationOptions())
    assert not can_augment({"x": inputs["x"]}, AugmentationOptions(mixed=0))
    assert can_augment({"x": torch.zeros(2, 1, 28, 28)}, AugmentationOptions(mixed=0))
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
    shifted = augment({"x": image}, AugmentationOptions(mixed=0, shift=0.1), seeded())["x"]
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    _, rows, columns = shifted[:, 0].nonzero(as_tuple=True)
    assert len(rows) == 200
    assert set(rows.tolist()) == set(range(6, 11))
    assert set(columns.tolist()) == {3, 4, 5}


def test_the_border_is_repeated() -> None:
    assert bool((augment({"x": torch.ones(8, 1, 20, 20)}, AugmentationOptions(), seeded())["x"] == 1).all())
