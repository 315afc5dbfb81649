"""An exported ONNX file: its digest, versions, interface, and an ONNX Runtime session on it; knows nothing of torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coin_export.errors import ExportError, MissingDependencyError, RepositoryError

if TYPE_CHECKING:
    import onnx

# The newest that ONNX Runtime in Triton 24.10 reads; later Tritons read these too.
MAX_IR_VERSION = 10
MAX_OPSET = 21


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of an ONNX graph.

    Attributes:
        name: its name.
        dtype: its name in ``onnx.TensorProto.DataType``, such as ``FLOAT``.
        dims: the whole shape; a number where it is static, the symbol's name (or ``?``) where it is dynamic.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of an ONNX graph, in its order."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


def file_digest(path: Path) -> str:
    """Return ``sha256:...`` over the contents of a file."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return "sha256:" + state.hexdigest()


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        RepositoryError: if it cannot be read or is no ONNX file.
        MissingDependencyError: if onnx is not installed.
    """
    from google.protobuf.message import DecodeError

    library = _import_onnx()
    try:
        model: onnx.ModelProto = library.load_model(path, load_external_data=False)
    except OSError as error:
        raise RepositoryError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise RepositoryError(f"{path}: not an ONNX file ({error}); build it again") from error
    return model


def check_versions(path: Path) -> None:
    """Check that Triton 24.10 and later can read an ONNX file.

    Raises:
        ExportError: if its IR version or opset is too new.
        RepositoryError: if it cannot be read.
    """
    check_model_versions(load_model(path), str(path))


def check_model_versions(model: onnx.ModelProto, where: str) -> None:
    """Check the versions of a model in memory; see `check_versions`."""
    opset = default_opset(model)
    if model.ir_version > MAX_IR_VERSION or opset > MAX_OPSET:
        raise ExportError(
            f"{where}: IR version {model.ir_version} and opset {opset}; Triton 24.10 takes at most IR version "
            f"{MAX_IR_VERSION} and opset {MAX_OPSET}: export it with lower versions"
        )


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model uses; 0 when it names none."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def read_interface(model: onnx.ModelProto) -> Interface:
    """Read the inputs and outputs of a model; initializers that are listed as inputs are none.

    Raises:
        MissingDependencyError: if onnx is not installed.
    """
    weights = {item.name for item in model.graph.initializer}
    inputs = [_tensor(item) for item in model.graph.input if item.name not in weights]
    return Interface(tuple(inputs), tuple(_tensor(item) for item in model.graph.output))


def load_session(path: Path) -> Any:
    """Open an ONNX file with ONNX Runtime, on one CPU thread.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        ExportError: if ONNX Runtime refuses the file.
        MissingDependencyError: if ONNX Runtime is not installed.
    """
    # Since 1.29 the library reports its use to its vendor and leaves files behind unless this is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise _missing("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised below; it would print them as well
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        lacking = "NOT_IMPLEMENTED" in str(error)
        hint = "; it lacks this operation for numbers of this kind, so try float32" if lacking else ""
        raise ExportError(f"{path}: ONNX Runtime cannot load it: {error}{hint}") from error


def _tensor(item: onnx.ValueInfoProto) -> GraphTensor:
    tensor = item.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    dtype = _import_onnx().TensorProto.DataType.Name(tensor.elem_type)
    return GraphTensor(item.name, dtype, dims)


def _import_onnx() -> ModuleType:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise _missing("onnx") from error
    return onnx


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f"this needs {package}, which is not installed: pip install 'coin-export[build]'")
