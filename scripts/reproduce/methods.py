"""The encoders that are compared, by the name that they have in the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.barycenter_cg import BarycenterCgOptions
from coin_export.encode.coin import CoinOptions
from coin_export.encode.distill import DistillOptions
from coin_export.encode.registry import DEFAULT_ENCODER, EncoderOptions
from coin_export.encode.regmean import RegMeanOptions
from coin_export.encode.regress import RegressOptions
from coin_export.fisher.options import FisherOptions

DEFAULT = DEFAULT_ENCODER.name
ALIKE = f"{DEFAULT}_alike"  # the same with all originals protected alike

METHODS: Mapping[str, EncoderOptions] = {
    "average": AverageOptions(),
    "coin": CoinOptions(),
    "coin_undamped": CoinOptions(normalization="none", damping=0.0),
    "coin_categorical": CoinOptions(fisher=FisherOptions(likelihood="categorical", estimate="sampled")),
    "regmean": RegMeanOptions(),
    "regmean_linear": RegMeanOptions(layers="linear"),
    "regress": RegressOptions(),
    "barycenter_cg": BarycenterCgOptions(),
    "auto": AutoOptions(),
    "distill": DistillOptions(),
    "distill_average": DistillOptions(start="average"),
    ALIKE: DEFAULT_ENCODER,
    DEFAULT: DEFAULT_ENCODER,
}


def with_options(options: EncoderOptions, changed: Mapping[str, Any]) -> EncoderOptions:
    """Return options with some of them changed, and checked."""
    return type(options).model_validate(options.model_dump() | dict(changed))


def seeded(options: EncoderOptions, seed: int) -> EncoderOptions:
    """Return the options with every seed in them set."""
    changed: dict[str, Any] = {"seed": seed} if "seed" in type(options).model_fields else {}
    if isinstance(options, CoinOptions):
        changed["fisher"] = options.fisher.model_copy(update={"seed": seed})
    return options.model_copy(update=changed)
