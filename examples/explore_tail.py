# %% [markdown]
# # What a stalled server does to the latency, with coding and without
#
# Starts one Triton server for each model of a repository, stalls one of them again and again (SIGSTOP), and plots the
# latencies of the same load twice: waiting for the originals, and decoding what is late. Run it cell by cell in an
# editor that knows `# %%`, or as a script:
#
#     pip install 'coin-export[serve,plots]'
#     python examples/explore_tail.py                                  # with the repository that `make demo` leaves
#
# The environment changes the settings: `COIN_REPOSITORY`, `COIN_OUTPUT` (folder of the plots), `COIN_REQUESTS`.

# %% Settings
"""What a stalled server does to the latency, with coding and without: cells to be run one by one, or as a script."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tritonclient.utils import triton_to_np_dtype

from coin_export.client import AtOnce, Budget, Limits, OnlyWhenDown, Policy, SyncCodedClient
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all

REPOSITORY = Path(os.environ.get("COIN_REPOSITORY", "model_repository"))
OUTPUT = Path(os.environ.get("COIN_OUTPUT", "artifacts"))
REQUESTS = int(os.environ.get("COIN_REQUESTS", "1000"))
INTERVAL_S = 0.02  # a request every so often, whether the earlier ones are answered or not
STALL_S, BETWEEN_STALLS_S = 0.2, 1.8  # so somebody is slow for a tenth of the time
WAITING = 64  # requests under way at most

# %% One server for each model, as in production each would be on a machine of its own
models = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
servers = [EmbeddedServer(REPOSITORY, models=[model]) for model in models]
start_all(servers)
addresses = [server.grpc_address for server in servers]
print(dict(zip(models, addresses, strict=True)))

# %% The two ways to ask. "without coding" is the same client, told to wait for the originals whatever happens.
for_ever = Limits(misses_in_a_row=10**9, abandoned_per_server=10**9)
WAYS: dict[str, dict[str, Any]] = {
    "without coding": {"policy": Policy(coded=OnlyWhenDown(), budget=Budget(0, 0)), "limits": for_ever},
    "with coding": {"policy": Policy(coded=AtOnce())},
}


# %% One server at a time stalls; the others do not know
@contextmanager
def stalling(victim: EmbeddedServer) -> Iterator[None]:
    """Stall a server again and again as long as the block runs."""
    over = threading.Event()

    def stall() -> None:
        while not over.wait(BETWEEN_STALLS_S):
            victim.suspend()
            try:
                over.wait(STALL_S)
            finally:
                victim.resume()

    thread = threading.Thread(target=stall)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# %% Ask at a steady pace. Latency counts from when a request was due, so that waiting in line is not left out.
def latencies_ms(client: SyncCodedClient) -> np.ndarray[Any, Any]:
    """Return one latency per request, in the order in which they were due."""
    inputs = {
        tensor.name: np.zeros((1, *(abs(size) for size in tensor.shape)), triton_to_np_dtype(tensor.dtype))
        for tensor in client.group.inputs
    }
    client.infer(inputs)  # the first one opens connections
    start = time.perf_counter() + INTERVAL_S

    def ask(number: int) -> float:
        due = start + number * INTERVAL_S
        time.sleep(max(due - time.perf_counter(), 0.0))
        client.infer(inputs)
        return 1e3 * (time.perf_counter() - due)

    with ThreadPoolExecutor(WAITING) as threads:
        return np.array(list(threads.map(ask, range(REQUESTS))))


# %% Measure
found = {}
try:
    for way, options in WAYS.items():
        with SyncCodedClient(addresses, **options) as one_client, stalling(servers[0]):
            found[way] = latencies_ms(one_client)
finally:
    stop_all(servers)
for way, values in found.items():
    print(f"{way}: " + ", ".join(f"p{q:g} {np.percentile(values, q):.1f} ms" for q in (50, 99, 99.9)))

# %% When: the stalls stand out, and are gone
figure, axes = plt.subplots(len(found), 1, sharex=True, sharey=True, figsize=(8, 5), layout="constrained")
for axis, (way, values) in zip(axes, found.items(), strict=True):
    axis.plot(INTERVAL_S * np.arange(len(values)), values, ".", markersize=3)
    axis.set(title=way, yscale="log", ylabel="latency (ms)")
axes[-1].set_xlabel("time (s)")
OUTPUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUTPUT / "explore_tail_times.png", dpi=150)

# %% How often: the share of requests that took longer than so many milliseconds
figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
for way, values in found.items():
    axis.step(np.sort(values), 1 - np.arange(len(values)) / len(values), where="post", label=way)
axis.set(xscale="log", yscale="log", xlabel="latency (ms)", ylabel="share of requests that took longer")
axis.legend()
figure.savefig(OUTPUT / "explore_tail_shares.png", dpi=150)
