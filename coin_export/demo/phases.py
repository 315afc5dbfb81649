"""The demonstration's phases: the same test images asked while all servers are well, one is stopped, one is killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coin_export.client import CodedClient, Source
from coin_export.code.decode import Array
from coin_export.datasets.bundled import ImageSet
from coin_export.errors import ClientError

INPUT, OUTPUT = "image", "logits"
DEADLINE_S = 1.0


@dataclass
class ModelTally:
    """What one phase returned for one model: sources over all requests, hits on the model's own test images."""

    direct: int = 0
    decoded: int = 0
    own_images: int = 0
    correct: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def percentile_ms(self, q: float) -> float:
        """Latency percentile of this model's answers."""
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else float("nan")

    @property
    def accuracy(self) -> float:
        """Accuracy in % of what was returned on the model's own test images."""
        return 100.0 * self.correct / self.own_images if self.own_images else float("nan")


@dataclass
class PhaseResult:
    """One phase: every test image of every set asked once, one image a request, one request at a time."""

    name: str
    models: dict[str, ModelTally]
    failed: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Number of requests sent."""
        return len(self.latencies_ms)

    @property
    def direct(self) -> int:
        """Number of direct answers, all models together."""
        return sum(tally.direct for tally in self.models.values())

    @property
    def decoded(self) -> int:
        """Number of decoded answers, all models together."""
        return sum(tally.decoded for tally in self.models.values())

    def percentile_ms(self, q: float) -> float:
        """Latency percentile over all requests, failed ones included."""
        return float(np.percentile(self.latencies_ms, q))


async def run_phase(
    name: str, client: CodedClient, sets: Mapping[str, ImageSet], on_request: Callable[[], object]
) -> PhaseResult:
    """Ask every test image of every set; the sets take turns, so that each phase sees them alike.

    Args:
        name: the phase's name.
        client: asks all servers of the group.
        sets: by the name of the model that was trained on it.
        on_request: called after each request.
    """
    result = PhaseResult(name, {model: ModelTally() for model in sets})
    for owner, image, label in _interleaved(list(sets.items())):
        start = time.perf_counter()
        try:
            answers = await client.infer({INPUT: image}, deadline=DEADLINE_S)
        except ClientError:
            result.failed += 1
        else:
            for model, tally in result.models.items():
                tally.direct += answers[model].source is Source.DIRECT
                tally.decoded += answers[model].source is Source.DECODED
                tally.latencies_ms.append(1e3 * answers[model].latency_s)
            own = result.models[owner]
            own.own_images += 1
            own.correct += int(answers[owner].outputs[OUTPUT].argmax()) == label
        result.latencies_ms.append(1e3 * (time.perf_counter() - start))
        on_request()
    return result


def _interleaved(sets: Sequence[tuple[str, ImageSet]]) -> Iterator[tuple[str, Array, int]]:
    for index in range(max(len(images.test_labels) for _, images in sets)):
        for name, images in sets:
            if index < len(images.test_labels):
                yield name, images.test_images[index : index + 1], int(images.test_labels[index])
