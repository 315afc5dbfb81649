"""What a user may choose about the ONNX export."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coin_export.export.onnx_file import MAX_IR_VERSION, MAX_OPSET

# The exporter writes no older operators, and each opset needs an IR version of at least this.
_LEAST_IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10}


class ExportOptions(BaseModel):
    """Versions of the ONNX files, and how closely ONNX Runtime must follow torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opset: int = Field(
        default=20, description=f"Version of the ONNX operators, 18 to {MAX_OPSET}: what Triton 24.10 and later take."
    )
    ir_version: int = Field(
        default=10,
        description=f"Version of the ONNX file format, at most {MAX_IR_VERSION}: what Triton 24.10 and later take.",
    )
    absolute_tolerance: float = Field(
        default=1e-5, ge=0, description="How far an output of ONNX Runtime may be from torch's at any rate."
    )
    relative_tolerance: float = Field(
        default=1e-4,
        ge=0,
        description="How much farther it may be, as a share of the largest magnitude in that output; "
        "half precision is allowed 0.01 at least.",
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 7, 32), min_length=1, description="Batch sizes at which both are compared."
    )

    @model_validator(mode="after")
    def _triton_takes_them(self) -> ExportOptions:
        if self.opset not in _LEAST_IR_VERSION:
            raise ValueError(
                f"opset {self.opset}: choose {min(_LEAST_IR_VERSION)} to {MAX_OPSET}; the exporter writes no older "
                "operators, and Triton 24.10 takes no newer ones"
            )
        if not _LEAST_IR_VERSION[self.opset] <= self.ir_version <= MAX_IR_VERSION:
            raise ValueError(
                f"ir_version {self.ir_version}: with opset {self.opset} choose {_LEAST_IR_VERSION[self.opset]} to "
                f"{MAX_IR_VERSION}; Triton 24.10 takes no newer one"
            )
        return self
