"""What coded models are fitted to: the originals' outputs on any inputs. And copies of the originals to be fitted.

Nothing here, or in what builds on it, sees a label: the originals answer any input.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.architecture import coded_module
from coin_export.encode.cost import Passes
from coin_export.encode.criterion import Answers
from coin_export.encode.encoding import StateDict
from coin_export.encode.execution import EXACT, Execution, Precision, fastest
from coin_export.errors import CoinExportError, ModelError
from coin_export.model.copying import copied
from coin_export.model.signature import FORWARD_ERRORS, Original, dtype_hint, to_tensors
from coin_export.model.state import first_names

Inputs = Mapping[str, torch.Tensor]
_TRIED = 8  # points
_HALF = (torch.float16, torch.bfloat16)


class Teachers:
    """Asks the originals, without gradients; half-precision originals work in float32.

    Attributes:
        output_names: of the originals.
        passes: counts them.
        execution: how they and those who are fitted to them run.
    """

    def __init__(self, originals: Sequence[Original], passes: Passes) -> None:
        self._modules = [_widened_module(original.module) for original in originals]
        self.output_names = tuple(spec.name for spec in originals[0].signature.outputs)
        self.passes = passes
        self.execution = EXACT

    def hastened(self, inputs: Inputs, precision: Precision) -> Teachers:
        """Return teachers who run in the fastest way that suits these originals; see `fastest`.

        Args:
            inputs: a few of them are used to try it; these are not counted as passes.
            precision: of products of matrices.
        """
        hastened = copy.copy(self)
        hastened.execution = fastest(self._modules, select(inputs, slice(_TRIED)), self.output_names, precision)
        hastened._modules = [hastened.execution.copy(module) for module in self._modules]
        return hastened

    def __call__(self, inputs: Inputs) -> list[torch.Tensor]:
        """Return each output of all k originals, shape (k, points, ...)."""
        with torch.no_grad():
            return self.ask(self._modules, inputs)

    def ask(self, modules: Sequence[torch.nn.Module], inputs: Inputs) -> list[torch.Tensor]:
        """Return each output of ``modules``, shape (modules, points, ...)."""
        self.passes.forward += len(modules) * points_of(inputs)
        outputs = [list(answers_of(module, inputs, self.output_names, self.execution).values()) for module in modules]
        return [torch.stack(tensors) for tensors in zip(*outputs, strict=True)]


def answers_of(
    module: torch.nn.Module, inputs: Inputs, output_names: Sequence[str], execution: Execution = EXACT
) -> dict[str, torch.Tensor]:
    """Return a working module's outputs by name.

    Raises:
        ModelError: if it cannot be run on this batch.
    """
    try:
        return execution.call(module, inputs, output_names)
    except CoinExportError:
        raise
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"a model cannot be run on a batch of {points_of(inputs)} points: {error}{dtype_hint(error)}"
        ) from error


def concatenated(parts: Sequence[Answers]) -> list[torch.Tensor]:
    """Join the answers on successive batches."""
    return [torch.cat(list(tensors), 1) for tensors in zip(*parts, strict=True)]


def working_inputs(calibration: CalibrationInputs) -> dict[str, torch.Tensor]:
    """Return all points as tensors, half precision widened to float32."""
    return {name: _widened(tensor) for name, tensor in to_tensors(calibration.arrays).items()}


def working_copy(original: Original, state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Copy the original's module with other weights, in eval mode, half precision widened to float32."""
    module = coded_module(original.module, state)
    return _widened_module(module)


def finished_state(module: torch.nn.Module, original: Original) -> StateDict:
    """Return the weights of a working copy in the original's dtypes, one tensor under all names of a tied weight."""
    first = first_names(original.module)
    wanted = original.module.state_dict()
    state: StateDict = {}
    for name, tensor in module.state_dict().items():
        source = first.get(name, name)
        if source in state:
            state[name] = state[source]
        else:
            state[name] = tensor.to(wanted[name].dtype, copy=True, memory_format=torch.contiguous_format)
    return state


def points_of(inputs: Inputs) -> int:
    """Return the number of points in a batch."""
    return int(next(iter(inputs.values())).shape[0])


def select(inputs: Inputs, index: torch.Tensor | slice) -> dict[str, torch.Tensor]:
    """Select points."""
    return {name: tensor[index] for name, tensor in inputs.items()}


def batches_of(inputs: Inputs, size: int) -> list[dict[str, torch.Tensor]]:
    """Split points into batches of at most ``size``."""
    return [select(inputs, slice(start, start + size)) for start in range(0, points_of(inputs), size)]


def _widened_module(module: torch.nn.Module) -> torch.nn.Module:
    """Return a float32 copy of a module with half-precision weights, any other module itself."""
    if any(tensor.dtype in _HALF for tensor in module.state_dict().values()):
        return copied(module).float()
    return module


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor
