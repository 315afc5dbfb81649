"""What a request returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, overload

import numpy.typing as npt

from coin_export.code.manifest import Quality

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


class Source(Enum):
    """Where an answer comes from."""

    DIRECT = "direct"
    DECODED = "decoded"


class _Message(Mapping[str, Any]):
    """A message of Triton's protocol: its fields are attributes, as over gRPC, and items, as in the JSON over HTTP."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return the fields as they are in JSON."""

    def __getitem__(self, key: str) -> Any:
        return self.as_json()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_json())

    def __len__(self) -> int:
        return len(self.as_json())


@dataclass(frozen=True)
class OutputTensor(_Message):
    """What an answer says about one output.

    Attributes:
        name: of the output.
        datatype: Triton's.
        shape: with batch.
        parameters: the size of the numbers in bytes, as over HTTP.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they are in JSON."""
        return {**vars(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Response(_Message):
    """An answer without its numbers, with the fields of Triton's ``ModelInferResponse``.

    Attributes:
        model_name: the model.
        model_version: empty for a decoded answer.
        id: of the request.
        outputs: what is known of each output.
        parameters: none; those that a server sends are not kept.
    """

    model_name: str
    model_version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they are in JSON."""
        return {**vars(self), "outputs": [tensor.as_json() for tensor in self.outputs]}


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

    def as_numpy(self, name: str) -> Array | Any:
        """Return the output ``name``; None if there is no such output, as tritonclient does.

        The type does not say so, lest callers who know their outputs must check; ``outputs[name]`` raises a KeyError.
        """
        return self.outputs.get(name)

    @overload
    def get_output(self, name: str, as_json: Literal[False] = False) -> OutputTensor | None: ...

    @overload
    def get_output(self, name: str, as_json: Literal[True]) -> dict[str, Any] | None: ...

    def get_output(self, name: str, as_json: bool = False) -> OutputTensor | dict[str, Any] | None:
        """Return what is known of the output ``name``; None if there is no such output, as tritonclient does."""
        found = next((tensor for tensor in self.get_response().outputs if tensor.name == name), None)
        return found.as_json() if as_json and found is not None else found

    @overload
    def get_response(self, as_json: Literal[False] = False) -> Response: ...

    @overload
    def get_response(self, as_json: Literal[True]) -> dict[str, Any]: ...

    def get_response(self, as_json: bool = False) -> Response | dict[str, Any]:
        """Return the answer without its numbers, which reads as tritonclient's does over either wire; or a dict."""
        tensors = tuple(_described(name, array) for name, array in self.outputs.items())
        response = Response(self.model, self.model_version, self.request_id, tensors)
        return response.as_json() if as_json else response


def _described(name: str, array: Array) -> OutputTensor:
    # The outputs of a coded group are floating point; discovery refuses others.
    return OutputTensor(name, f"FP{8 * array.dtype.itemsize}", array.shape, {"binary_data_size": array.nbytes})


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
