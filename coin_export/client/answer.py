"""What a request returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, overload

import numpy.typing as npt

from coin_export.code.manifest import Quality
from coin_export.errors import RequestError

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


class Source(Enum):
    """Where an answer comes from."""

    DIRECT = "direct"
    DECODED = "decoded"


@dataclass(frozen=True)
class OutputTensor:
    """What an answer says about one output, named as in Triton's protocol: Triton's datatype, the shape with batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Response:
    """An answer without its numbers, with the attributes of Triton's ``ModelInferResponse``."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[OutputTensor, ...]


@dataclass(eq=False, slots=True)
class Answer:
    """One model's answer; offers what tritonclient's ``InferResult`` does, decoded or not.

    Attributes:
        model: the model's name; the group's for the mean of its originals.
        outputs: by output name; a direct answer's arrays are read-only views of the received message.
        source: from the model itself, or decoded from the others.
        noise_gain: by how much decoding amplified the coding error; 0 for a direct answer.
        quality: what was measured at build for this loss; None for a direct answer, or if nothing was measured.
        latency_s: seconds from the request to this answer.
        model_version: of the model that answered; empty for a decoded answer.
        request_id: of the request.
    """

    model: str
    outputs: Outputs
    source: Source
    noise_gain: float
    quality: Quality | None
    latency_s: float
    model_version: str = ""
    request_id: str = ""

    def as_numpy(self, name: str) -> Array:
        """Return the output ``name``, as tritonclient's ``InferResult.as_numpy`` does.

        Raises:
            RequestError: if there is no such output.
        """
        try:
            return self.outputs[name]
        except KeyError:
            raise RequestError(f"model {self.model!r} has no output {name!r}; it has {list(self.outputs)}") from None

    def get_output(self, name: str) -> OutputTensor | None:
        """Return what is known of the output ``name``; None if there is no such output, as tritonclient does."""
        return next((tensor for tensor in self.get_response().outputs if tensor.name == name), None)

    @overload
    def get_response(self, as_json: Literal[False] = False) -> Response: ...

    @overload
    def get_response(self, as_json: Literal[True]) -> dict[str, Any]: ...

    def get_response(self, as_json: bool = False) -> Response | dict[str, Any]:
        """Return the answer without its numbers: attributes as over gRPC, or a dict as over HTTP."""
        # The outputs of a coded group are floating point; discovery refuses others.
        tensors = tuple(OutputTensor(name, f"FP{8 * a.dtype.itemsize}", a.shape) for name, a in self.outputs.items())
        response = Response(self.model, self.model_version, self.request_id, tensors)
        if not as_json:
            return response
        return {**vars(response), "outputs": [{**vars(tensor), "shape": list(tensor.shape)} for tensor in tensors]}


class Answers(Mapping[str, Answer]):
    """The answers of one request by model name, in the order of the group's originals."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = dict(answers)

    def __getitem__(self, model: str) -> Answer:
        return self._answers[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        parts = (f"{name}: {answer.source.value}, {1e3 * answer.latency_s:.1f} ms" for name, answer in self.items())
        return f"Answers({'; '.join(parts)})"
