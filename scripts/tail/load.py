"""Open-loop load: requests go out at their intended times, whatever became of those before them."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from coin_export.datasets import bundled
from coin_export.datasets.calibration import Array
from coin_export.errors import ClientError
from scripts.bench.group import DATA_SETS
from scripts.tail.asking import Asker
from scripts.tail.timeline import Event, play

_START_S = 0.1  # until the first event
_DRAIN_S = 30.0  # for what is still under way after the last arrival; far longer than any stop


@dataclass
class Trace:
    """What became of every request; arrays of shape (requests,), filled in place.

    Attributes:
        latency_s: from the *intended* send time to the answers; NaN where there were none.
        late_s: from the intended send time to the sending: the client's own share.
        decoded: the number of answers that did not come from the original itself.
        correct: whether the answer of the image's own model was its label.
    """

    latency_s: npt.NDArray[np.float64]
    late_s: npt.NDArray[np.float64]
    decoded: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    errors: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, requests: int) -> Trace:
        """Make an empty one."""
        return cls(
            np.full(requests, np.nan), np.full(requests, np.nan), np.zeros(requests, np.int64), np.zeros(requests, bool)
        )


class Images:
    """Test images of all data sets in turn, each with the model it belongs to."""

    def __init__(self) -> None:
        sets = [bundled.load(name) for name in DATA_SETS]
        self._images = [[images.test_images[i : i + 1] for i in range(len(images.test_labels))] for images in sets]
        self._labels = [images.test_labels.tolist() for images in sets]

    def __getitem__(self, request: int) -> tuple[int, Array, int]:
        """Return the owner, the image as a batch of one, and its label."""
        turn, owner = divmod(request, len(self._images))
        index = turn % len(self._images[owner])
        return owner, self._images[owner][index], self._labels[owner][index]


async def offer(
    asker: Asker, images: Images, due_s: npt.NDArray[np.float64], others: Sequence[tuple[float, Callable[[], Any]]] = ()
) -> Trace:
    """Send requests at their times and wait for all of them.

    Args:
        asker: sends them.
        images: what is asked.
        due_s: intended send times in seconds from the start, shape (requests,).
        others: what else is to be done, and when, on the same clock.
    """
    loop = asyncio.get_running_loop()
    trace = Trace.of(len(due_s))
    under_way: set[asyncio.Task[None]] = set()

    async def one(index: int, intended: float) -> None:
        trace.late_s[index] = time.monotonic() - intended
        owner, image, label = images[index]
        try:
            asked = await asker.ask(image)
        except (ClientError, InferenceServerException) as error:
            trace.errors.append(str(error))
            return
        trace.latency_s[index] = time.monotonic() - intended
        trace.decoded[index] = asked.decoded
        trace.correct[index] = int(asked.outputs[owner].argmax()) == label

    def send(index: int, intended: float) -> None:
        task = loop.create_task(one(index, intended))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    gc.collect()
    gc.freeze()
    start = time.monotonic() + _START_S
    events = [Event(start + at, act) for at, act in others]
    events += [Event(start + at, partial(send, index, start + at)) for index, at in enumerate(due_s.tolist())]
    await play(events)
    if under_way:
        _, stuck = await asyncio.wait(under_way, timeout=_DRAIN_S)
        trace.errors += ["no answer"] * len(stuck)
    return trace
