"""More calibration inputs than were given: mixtures, shifts, warps and exchanges. The originals label anything.

Floating-point inputs are mixed; images are shifted and warped before. Between two tokens there is no token, so rows of
integers (token ids, their masks) take positions from other rows instead, all inputs of a point the same ones. Points
with inputs of both kinds, or of integers of other shapes, are left as they are.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from coin_export.encode.criterion import Answers
from coin_export.encode.teachers import Inputs, Teachers, points_of

_MOST_EXCHANGED = 0.5  # of the positions of a point, on average; how many is drawn for each


class AugmentationOptions(BaseModel):
    """How far to go beyond the given points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixed: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of points replaced by a convex mixture with another point of their batch.",
    )
    shift: float = Field(
        default=0.07,
        ge=0,
        le=0.5,
        description="Largest shift of an image (an input of shape channels x height x width), as a share of its "
        "height and width; the border is repeated. 0.07 is 2 of 28 or 32 pixels.",
    )
    warp: float = Field(
        default=0.2,
        ge=0,
        le=0.5,
        description="Largest zoom of an image, in or out, as a share of its size, and largest rotation, in radians; "
        "the border is repeated. Images that this moves by less than a pixel are left as they are.",
    )
    exchanged: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of points that take some positions, up to half of them, from another point of their batch, "
        "where all inputs are rows of integers (points x positions) of one length: token ids and their masks.",
    )


def can_augment(inputs: Inputs, options: AugmentationOptions) -> bool:
    """Say whether augmentation would change these inputs."""
    return can_mix(inputs, options) or (_are_rows(inputs) and options.exchanged > 0)


def can_mix(inputs: Inputs, options: AugmentationOptions) -> bool:
    """Say whether mixing, shifting or warping would change these inputs: then there is no end of them."""
    tensors = inputs.values()
    return all(tensor.is_floating_point() for tensor in tensors) and (
        options.mixed > 0 or any(_reach(tensor, options) != (0, 0) or _is_warped(tensor, options) for tensor in tensors)
    )


def augment(inputs: Inputs, options: AugmentationOptions, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Shift, then mix, a batch, or exchange positions; all inputs of a point are treated alike.

    Args:
        inputs: of which `can_augment` holds.
        options: how far to go.
        generator: of all that is random.
    """
    if _are_rows(inputs):
        return _exchanged(inputs, options.exchanged, generator)
    points = points_of(inputs)
    direction = torch.rand(points, 2, generator=generator)
    moved = {name: _shifted(tensor, _reach(tensor, options), direction) for name, tensor in inputs.items()}
    if any(_is_warped(tensor, options) for tensor in inputs.values()):
        zoom, angle = options.warp * (2 * torch.rand(2, points, generator=generator) - 1)
        moved = {
            name: _warped(tensor, 1 + zoom, angle) if _is_warped(tensor, options) else tensor
            for name, tensor in moved.items()
        }
    if options.mixed == 0:
        return moved
    partner = torch.randperm(points, generator=generator)
    alone = torch.rand(points, generator=generator) >= options.mixed
    share = torch.rand(points, generator=generator).masked_fill(alone, 1.0)
    return {name: _mixed(tensor, tensor[partner], share) for name, tensor in moved.items()}


def answered(teachers: Teachers, augmented: Inputs, plain: Inputs) -> tuple[Inputs, Answers]:
    """Ask the originals what augmentation made of some points.

    A point to which one of them then answers NaN or infinity, such as a row whose mask has come to hide all of it, is
    left as it was.

    Args:
        teachers: the originals.
        augmented: what was made of the points.
        plain: the points.
    """
    answers = teachers(augmented)
    refused = torch.stack([~output.isfinite().reshape(*output.shape[:2], -1).all(-1).all(0) for output in answers]).any(
        0
    )
    if not refused.any():
        return augmented, answers
    kept = {
        name: torch.where(refused.reshape(-1, *[1] * (tensor.ndim - 1)), plain[name], tensor)
        for name, tensor in augmented.items()
    }
    return kept, teachers(kept)


def _are_rows(inputs: Inputs) -> bool:
    """Say whether all inputs are integers (or booleans) of one shape, (points, positions)."""
    tensors = list(inputs.values())
    integers = not any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
    return integers and all(tensor.ndim == 2 and tensor.shape == tensors[0].shape for tensor in tensors)


def _exchanged(inputs: Inputs, share: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    points, positions = next(iter(inputs.values())).shape
    partner = torch.randperm(points, generator=generator)
    rate = torch.rand(points, 1, generator=generator) * _MOST_EXCHANGED
    alone = torch.rand(points, 1, generator=generator) >= share
    taken = (torch.rand(points, positions, generator=generator) < rate) & ~alone
    return {name: torch.where(taken, tensor[partner], tensor) for name, tensor in inputs.items()}


def _mixed(tensor: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = share.to(tensor.dtype).reshape(-1, *[1] * (tensor.ndim - 1))
    return share * tensor + (1 - share) * other


def _reach(tensor: torch.Tensor, options: AugmentationOptions) -> tuple[int, int]:
    """Return the largest shift in rows and columns."""
    if tensor.ndim != 4:
        return 0, 0
    return round(options.shift * tensor.shape[-2]), round(options.shift * tensor.shape[-1])


def _shifted(images: torch.Tensor, reach: tuple[int, int], direction: torch.Tensor) -> torch.Tensor:
    """Shift each image by whole pixels, up to ``reach``; ``direction`` in [0, 1) is where in that range."""
    if reach == (0, 0):
        return images
    (rows, columns), (height, width) = reach, images.shape[-2:]
    padded = functional.pad(images, (columns, columns, rows, rows), mode="replicate")
    offset = (direction * torch.tensor([2 * rows + 1, 2 * columns + 1])).long()
    row = offset[:, 0, None] + torch.arange(height)
    column = offset[:, 1, None] + torch.arange(width)
    points = torch.arange(len(images))[:, None, None]
    # Advanced indices around a slice come first, so the channels end up last; a forward may want to `view` its input.
    return padded[points, :, row[:, :, None], column[:, None, :]].movedim(-1, 1).contiguous()


def _is_warped(tensor: torch.Tensor, options: AugmentationOptions) -> bool:
    """Say whether the largest warp moves the middle of an edge by a pixel or more."""
    return tensor.ndim == 4 and options.warp * min(tensor.shape[-2:]) >= 2


def _warped(images: torch.Tensor, scale: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Zoom each image about its middle and turn it, in pixels, whatever its proportions; values are interpolated.

    Args:
        images: shape (points, channels, height, width).
        scale: of what is seen, for each point; below one zooms in.
        angle: of each point, in radians.
    """
    proportion = images.shape[-2] / images.shape[-1]
    zeros = torch.zeros_like(scale)
    rows = [
        torch.stack([scale * angle.cos(), -proportion * scale * angle.sin(), zeros], 1),
        torch.stack([scale * angle.sin() / proportion, scale * angle.cos(), zeros], 1),
    ]
    seen = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, seen.to(images.dtype), padding_mode="border", align_corners=False)
