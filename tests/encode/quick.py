"""Every encoder, with few steps."""

from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.barycenter_cg import BarycenterCgOptions
from coin_export.encode.coin import CoinOptions
from coin_export.encode.distill import DistillOptions
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import EncoderOptions
from coin_export.encode.regmean import RegMeanOptions
from coin_export.encode.regress import RegressOptions

QUICK: dict[str, EncoderOptions] = {
    "average": AverageOptions(),
    "coin": CoinOptions(),
    "coin undamped": CoinOptions(damping=0),
    "regmean": RegMeanOptions(),
    "regress": RegressOptions(),
    "barycenter_cg": BarycenterCgOptions(iterations=3),
    "auto": AutoOptions(),
    "distill": DistillOptions(epochs=2),
    "distill from coin": DistillOptions(epochs=2, start="coin"),
    "refine": RefineOptions(budget=512, trial_steps=2),
}
