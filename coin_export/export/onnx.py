"""Export of a torch module to one ONNX file that Triton takes: pinned versions, dynamic batch, names kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import EncodeError
from torch.nn.utils import parametrize

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import ExportError, ModelError
from coin_export.export.dtypes import BY_TORCH
from coin_export.export.naming import name_interface, provisional_names
from coin_export.export.onnx_file import GraphTensor, check_model_versions, default_opset, read_interface
from coin_export.export.options import ExportOptions
from coin_export.export.portable import BATCH, make_portable
from coin_export.export.quiet import quiet
from coin_export.model.signature import Signature, TensorSpec, name_outputs, to_tensors

# protobuf writes no message of 2 GiB or more; the graph beside the weights gets 16 MiB of it.
_MOST_WEIGHT_BYTES = 2**31 - 2**24
_EXAMPLE_POINTS = 3  # torch.export takes a dimension of 1 for a constant


def export_onnx(
    module: torch.nn.Module,
    signature: Signature,
    calibration: CalibrationInputs,
    path: Path,
    options: ExportOptions,
) -> None:
    """Write ``module`` to ``path`` as a single ONNX file with a dynamic batch on every input and output.

    The same module gives the same bytes, whatever the machine. The module is exported in eval mode and left in
    the mode that it was in.

    Args:
        module: the model; its forward takes the inputs by position.
        signature: names, dtypes and shapes of inputs and outputs.
        calibration: inputs to trace the module with; a few points are used.
        path: the file to write.
        options: the versions.

    Raises:
        ExportError: if the module cannot be exported, depends on the batch size, needs 2 GB or more, or if the
            result is not what the signature says or Triton takes.
    """
    _check_dtypes(signature)
    _check_size(module)
    program = _capture(module, signature, calibration)
    model = _convert(program, signature, options)
    name_interface(model, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
    make_portable(model)
    model.ir_version = options.ir_version
    _check(model, signature, options)
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ExportError(f"the model does not fit into one ONNX file, which holds less than 2 GB: {error}") from error
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` and its parts into eval mode, and back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class _NamedOutputs(torch.nn.Module):
    """Calls a module by position and returns its outputs as a tuple, in the order of their names."""

    def __init__(self, model: torch.nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._output_names = output_names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(name_outputs(self.model(*inputs), self._output_names).values())


def _capture(
    module: torch.nn.Module, signature: Signature, calibration: CalibrationInputs
) -> torch.export.ExportedProgram:
    example = calibration.take(np.arange(_EXAMPLE_POINTS) % len(calibration))
    inputs = tuple(to_tensors(example.arrays).values())
    batch = torch.export.Dim(BATCH)
    wrapped = _NamedOutputs(module, [spec.name for spec in signature.outputs])
    try:
        # Weights that parametrizations compute of others are computed here, once, and constants of the exported model.
        with quiet(), evaluating(wrapped), parametrize.cached():
            if any(map(parametrize.is_parametrized, wrapped.modules())):
                with torch.no_grad():
                    wrapped(*inputs)
            return torch.export.export(wrapped, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    except ModelError:
        raise
    except Exception as error:  # torch.export raises whatever went wrong while it traced the user's forward
        if "Constraints violated" in str(error):
            raise ExportError(
                f"the model's computation depends on the batch size, which must be free: {_essence(error)}; "
                "write shapes as x.flatten(1) or x.view(x.shape[0], -1), and neither int(x.shape[0]) nor a Python "
                "branch or loop over it"
            ) from error
        raise ExportError(
            f"torch.export cannot capture the model: {_essence(error)}; its forward must not branch on the values of "
            "tensors nor leave torch"
        ) from error


def _convert(program: torch.export.ExportedProgram, signature: Signature, options: ExportOptions) -> onnx.ModelProto:
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=options.opset,
                input_names=provisional_names("input", len(signature.inputs)),
                output_names=provisional_names("output", len(signature.outputs)),
                external_data=False,
                verbose=False,
            )
            assert exported is not None  # None is returned by the former exporter only
            return exported.model_proto
    except Exception as error:  # as above
        raise ExportError(
            f"the model cannot be written as ONNX: {_essence(error)}; replace that operation by others"
        ) from error


def _essence(error: BaseException) -> str:
    """Return the first lines of the innermost cause, without the advice for developers of torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = []
    for line in str(error).splitlines():
        text = re.sub(r"For more information, .*", "", line).strip(" -")
        if text.startswith(("Suggested fixes", "The error above", "consider using", "Caused by")):
            break
        if text:
            lines.append(text)
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"


def _check_dtypes(signature: Signature) -> None:
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if str(spec.dtype) not in BY_TORCH:
                raise ExportError(
                    f"{kind} {spec.name!r} is {spec.dtype}, which Triton's ONNX Runtime backend does not take; "
                    "convert the model to float32 or float16"
                )


def _check_size(module: torch.nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > _MOST_WEIGHT_BYTES:
        raise ExportError(
            f"the weights take {size / 1e9:.1f} GB; a single ONNX file holds less than 2 GB: "
            "store them in half precision or use a smaller model"
        )


def _check(model: onnx.ModelProto, signature: Signature, options: ExportOptions) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported model is not valid ONNX: {error}") from error
    check_model_versions(model, "the exported model")
    if (model.ir_version, default_opset(model)) != (options.ir_version, options.opset):
        raise ExportError(
            f"the exporter wrote opset {default_opset(model)} and not {options.opset}: it could not convert every "
            "operation; choose another opset"
        )
    interface = read_interface(model)
    _check_tensors("input", interface.inputs, signature.inputs)
    _check_tensors("output", interface.outputs, signature.outputs)


def _check_tensors(kind: str, tensors: Sequence[GraphTensor], specs: Sequence[TensorSpec]) -> None:
    names, wanted = [tensor.name for tensor in tensors], [spec.name for spec in specs]
    if names != wanted:
        raise ExportError(f"the exported model has the {kind}s {names}; its signature says {wanted}")
    for tensor, spec in zip(tensors, specs, strict=True):
        expected = GraphTensor(spec.name, BY_TORCH[str(spec.dtype)].onnx, (BATCH, *spec.shape))
        if tensor == expected:
            continue
        if tensor.dims[:1] != (BATCH,):
            raise ExportError(
                f"{kind} {spec.name!r} has shape {list(tensor.dims)} in the exported model; its first dimension must "
                "be the batch and free: give one row per point"
            )
        raise ExportError(
            f"{kind} {spec.name!r} is {tensor.dtype} of shape {list(tensor.dims)} in the exported model; its "
            f"signature says {expected.dtype} of shape {list(expected.dims)}"
        )
