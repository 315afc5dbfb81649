"""The singular vectors by which spectral normalisation divides a weight (Miyato and others, 2018).

They are buffers, and in eval mode sigma = u^T W v. Averaged over the originals they are unit vectors no more, and those
of no weight, so what is divided by sigma comes out far too large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from coin_export.encode.architecture import coded_module
from coin_export.encode.encoding import StateDict
from coin_export.model.signature import Original
from coin_export.model.state import all_equal

_ITERATIONS = 30  # of the power method; layers take one a step in training


def renew_singular_vectors(originals: Sequence[Original], state: StateDict) -> None:
    """Find the vectors of the combined weights, in place; those of layers that are equal in all originals stay."""
    if next(_norms(originals[0].module), None) is None:
        return
    states = [original.module.state_dict() for original in originals]
    coded = coded_module(originals[0].module, state)
    buffers = dict(coded.named_buffers(remove_duplicate=False))
    for prefix, iterate in _norms(coded):
        names = [name for name in state if name.startswith(prefix)]
        if not all(all_equal(own[name] for own in states) for name in names):
            with torch.no_grad():
                for _ in range(_ITERATIONS):
                    iterate()
            state.update({name: buffers[name] for name in names if name in buffers})


def _norms(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield, for each spectral norm, how the names of its tensors begin, and what improves its vectors by a step."""
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, ParametrizationList) and isinstance(part[0], _SpectralNorm):
            yield f"{name}.", partial(_step, part[0], part.original)
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                yield f"{name}.{hook.name}_".lstrip("."), partial(hook.compute_weight, part, do_power_iteration=True)


def _step(norm: nn.Module, weight: torch.Tensor) -> None:
    norm.train()
    norm(weight)
    norm.eval()
