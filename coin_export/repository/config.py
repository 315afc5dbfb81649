"""``config.pbtxt`` of the models of a group, written and read through Triton's own protobuf.

Needs the base installation only: no torch, ONNX or pydantic at run time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from coin_export.code.manifest import PARAMETER_KEY, Group, Tensor, from_json
from coin_export.errors import RepositoryError
from coin_export.export.dtypes import BY_TORCH

if TYPE_CHECKING:
    from coin_export.model.signature import Signature, TensorSpec
    from coin_export.repository.options import RepositoryOptions

BACKEND = "onnxruntime"
CONFIG_FILE = "config.pbtxt"
THREADS_KEY = "intra_op_thread_count"


def triton_tensors(signature: Signature) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a signature's inputs and outputs as a client sees them.

    Raises:
        RepositoryError: if Triton's ONNX Runtime backend does not take a dtype, or a tensor has no dimension
            beside the batch.
    """
    return _tensors("input", signature.inputs), _tensors("output", signature.outputs)


def config_text(group: Group, name: str, options: RepositoryOptions) -> str:
    """Write the configuration of the member ``name`` of ``group``.

    The platform is left open: the backend alone decides, for NVIDIA's C++ backend as for one in Python.
    """
    (member,) = (member for member in group.members if member.name == name)
    config = model_config_pb2.ModelConfig(name=name, backend=BACKEND, max_batch_size=options.max_batch_size)
    batch = () if options.max_batch_size else (-1,)
    for fields, tensors in ((config.input, group.inputs), (config.output, group.outputs_of(member))):
        for tensor in tensors:
            fields.add(name=tensor.name, data_type=f"TYPE_{tensor.dtype}", dims=(*batch, *tensor.shape))
    config.instance_group.add(count=options.instance_count)
    if options.dynamic_batching and options.max_batch_size:
        config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us
        if options.queue_timeout_us or options.max_queue_size:
            # Triton lets a request's own timeout shorten the default one, never replace a missing one.
            policy = config.dynamic_batching.default_queue_policy
            policy.default_timeout_microseconds = options.queue_timeout_us
            policy.allow_timeout_override = True
            policy.max_queue_size = options.max_queue_size
    config.metric_tags.update({"group": group.name, "role": member.role})
    config.parameters[THREADS_KEY].string_value = str(options.intra_op_threads)
    config.parameters[PARAMETER_KEY].string_value = group.to_json(name)
    text: str = text_format.MessageToString(config)
    # A zero is protobuf's default and left out, and Triton then works out a maximum of its own.
    return text if options.max_batch_size else text + "max_batch_size: 0\n"


def parse_config(text: str, where: str) -> Any:
    """Read a configuration strictly.

    Args:
        text: the contents of a ``config.pbtxt``.
        where: the place the text came from, for error messages.

    Returns:
        A ``tritonclient.grpc.model_config_pb2.ModelConfig``.

    Raises:
        RepositoryError: with file and line, if a field is unknown, given twice or has a value of the wrong type.
    """
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        line = f":{error.GetLine()}" if error.GetLine() else ""
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise RepositoryError(f"{where}{line}: not a Triton model configuration: {reason}") from error


def read_config(path: Path) -> Any:
    """Read a ``config.pbtxt`` strictly; see `parse_config`.

    Raises:
        RepositoryError: if it cannot be read or is not valid.
    """
    return parse_config(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Read a configuration's text.

    Raises:
        RepositoryError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path}: cannot be read: {error}") from error


def read_manifest(config: Any, where: str) -> tuple[Group, str] | None:
    """Read the group that a configuration carries, and which of its members this is; None if it carries none.

    Raises:
        ManifestError: if what it carries is malformed.
    """
    if PARAMETER_KEY not in config.parameters:
        return None
    return from_json(config.parameters[PARAMETER_KEY].string_value, where)


def whole_shapes(config: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a configuration's inputs and outputs with their whole shapes: the batch first, as -1."""
    return _whole(config.input, config.max_batch_size), _whole(config.output, config.max_batch_size)


def _whole(fields: Iterable[Any], max_batch_size: int) -> tuple[Tensor, ...]:
    batch = (-1,) if max_batch_size else ()
    return tuple(
        Tensor(
            item.name,
            model_config_pb2.DataType.Name(item.data_type).removeprefix("TYPE_"),
            (*batch, *(item.reshape.shape if item.HasField("reshape") else item.dims)),
        )
        for item in fields
    )


def _tensors(kind: str, specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    for spec in specs:
        if str(spec.dtype) not in BY_TORCH:
            raise RepositoryError(
                f"{kind} {spec.name!r} is {spec.dtype}, which Triton's ONNX Runtime backend does not take; "
                "convert the model to float32 or float16"
            )
        if not spec.shape:
            raise RepositoryError(
                f"{kind} {spec.name!r} is one number per point, of shape (points,); Triton wants a dimension beside "
                "the batch: make it (points, 1)"
            )
    return tuple(Tensor(spec.name, BY_TORCH[str(spec.dtype)].triton, spec.shape) for spec in specs)
