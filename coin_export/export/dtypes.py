"""Element types by the names that torch, ONNX and Triton give them; knows none of the three."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ElementType:
    """One element type.

    Attributes:
        torch: as ``str(tensor.dtype)`` writes it.
        onnx: its name in ``onnx.TensorProto.DataType``.
        triton: its Triton datatype, for example ``FP32``; ``TYPE_`` in front makes the name in ``config.pbtxt``.
    """

    torch: str
    onnx: str
    triton: str


# Those that Triton's ONNX Runtime backend takes; it takes no bfloat16.
ELEMENT_TYPES = (
    ElementType("torch.bool", "BOOL", "BOOL"),
    ElementType("torch.uint8", "UINT8", "UINT8"),
    ElementType("torch.uint16", "UINT16", "UINT16"),
    ElementType("torch.uint32", "UINT32", "UINT32"),
    ElementType("torch.uint64", "UINT64", "UINT64"),
    ElementType("torch.int8", "INT8", "INT8"),
    ElementType("torch.int16", "INT16", "INT16"),
    ElementType("torch.int32", "INT32", "INT32"),
    ElementType("torch.int64", "INT64", "INT64"),
    ElementType("torch.float16", "FLOAT16", "FP16"),
    ElementType("torch.float32", "FLOAT", "FP32"),
    ElementType("torch.float64", "DOUBLE", "FP64"),
)

BY_TORCH = {element.torch: element for element in ELEMENT_TYPES}
BY_ONNX = {element.onnx: element for element in ELEMENT_TYPES}
