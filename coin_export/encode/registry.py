"""The encoders by name, and the one way to run any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, Field

from coin_export.code.linear import LinearCode, check_all_protected
from coin_export.code.manifest import CodeSpace
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.architecture import check_same_architecture, coded_module
from coin_export.encode.auto import AutoOptions, auto
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.barycenter import taken_from_first
from coin_export.encode.barycenter_cg import BarycenterCgOptions, barycenter_cg
from coin_export.encode.coin import CoinOptions, coin
from coin_export.encode.distill import DistillOptions, distill
from coin_export.encode.encoding import Encoder, Encoding, row_by_row
from coin_export.encode.refine import RefineOptions, refine
from coin_export.encode.regmean import RegMeanOptions, regmean
from coin_export.encode.regress import RegressOptions, regress
from coin_export.errors import CodeError
from coin_export.model.signature import Original
from coin_export.model.state import check_finite

ENCODERS: Mapping[str, tuple[type[BaseModel], Encoder]] = {
    "average": (AverageOptions, row_by_row(average)),
    "coin": (CoinOptions, row_by_row(coin)),
    "regmean": (RegMeanOptions, row_by_row(regmean)),
    "regress": (RegressOptions, row_by_row(regress)),
    "barycenter_cg": (BarycenterCgOptions, row_by_row(barycenter_cg)),
    "auto": (AutoOptions, auto),
    "distill": (DistillOptions, row_by_row(distill)),
    "refine": (RefineOptions, refine),
}

EncoderOptions: TypeAlias = Annotated[
    AverageOptions
    | CoinOptions
    | RegMeanOptions
    | RegressOptions
    | BarycenterCgOptions
    | AutoOptions
    | DistillOptions
    | RefineOptions,
    Field(discriminator="name"),
]

DEFAULT_ENCODER = RefineOptions()


def fits_decoded_answers(options: EncoderOptions) -> bool:
    """Say whether an encoder fits coded models to what decoding makes of them, so that it serves unequal coefficients.

    Others may lose a model of small coefficient twice, as barycenters of weights do: its weights count less, and what
    that spoils is amplified more.
    """
    return isinstance(options, RefineOptions)


def fitting(options: EncoderOptions, space: CodeSpace) -> EncoderOptions:
    """Return the options with the criterion that fits the code space, where none was chosen: no logits, no softmax."""
    chosen = "criterion" not in type(options).model_fields or "criterion" in options.model_fields_set
    return options if chosen or space == "logits" else options.model_copy(update={"criterion": "error"})


def encode(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: EncoderOptions,
    cache: Path | None = None,
) -> Encoding:
    """Make the coded model of a code with one row; see `encode_rows`."""
    (encoding,) = encode_rows(originals, [coefficients], calibration, options, cache)
    return encoding


def encode_rows(
    originals: Sequence[Original],
    rows: Sequence[Sequence[float]],
    calibration: CalibrationInputs,
    options: EncoderOptions,
    cache: Path | None = None,
) -> list[Encoding]:
    """Make the coded models of a group.

    Args:
        originals: k models of one architecture, in eval mode; they are left as they are.
        rows: the code's rows of coefficients.
        calibration: unlabeled inputs.
        options: those of one of the `ENCODERS`, which they name.
        cache: folder in which statistics are kept; None keeps none.

    Raises:
        CodeError: if a row has not one positive coefficient for each original, or does not sum to one.
        ModelError: if the originals cannot be combined; as `check_same_architecture`.
        NonFiniteError: if weights, outputs, statistics or coded weights hold NaN or infinity.
        CoinExportError: otherwise as the encoder.
    """
    check_same_architecture(originals)
    for row in rows:
        _check_coefficients(originals, row)
    _, encoder = ENCODERS[options.name]
    encodings = encoder(originals, LinearCode.from_rows(rows), calibration, options, cache)
    for encoding in encodings:
        check_finite(coded_module(originals[0].module, encoding.state_dict), f"weights coded by {options.name!r}")
    chosen = taken_from_first(originals)
    notes = {f"taken from {originals[0].name!r}": chosen} if chosen else {}
    return [Encoding(item.state_dict, item.cost, {**item.notes, **notes}) for item in encodings]


def _check_coefficients(originals: Sequence[Original], coefficients: Sequence[float]) -> None:
    if len(coefficients) != len(originals):
        raise CodeError(f"{len(coefficients)} coefficients for {len(originals)} originals; give one for each")
    check_all_protected(coefficients, "the coefficients")
    if not math.isclose(math.fsum(coefficients), 1.0, rel_tol=1e-6):
        raise CodeError(f"the coefficients {list(coefficients)} sum to {math.fsum(coefficients)}; make it one")
