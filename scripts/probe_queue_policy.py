"""Show what a queue policy costs on the embedded Triton: requests that wait 500 ms on an idle server.

    python scripts/probe_queue_policy.py REPOSITORY MODEL

Asks one model of a repository that `coin-export build` or `demo` wrote, one request at a time, with dynamic batching
as it is written by default and with queue policies; the configurations take turns over several repeats.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from rich.console import Console
from rich.table import Table

from coin_export.repository.config import parse_config, read_config
from coin_export.serve.embedded import EmbeddedServer

BATCHING = {
    "default": "dynamic_batching { }",
    "queue timeout": "dynamic_batching { default_queue_policy { default_timeout_microseconds: 60000000 } }",
    "queue size": "dynamic_batching { default_queue_policy { max_queue_size: 256 } }",
}
STALLED_MS = 400.0


def main() -> None:
    """Print one line per configuration and repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    table = Table("queue policy", "repeat", "p50 ms", "p99 ms", "max ms", f"requests over {STALLED_MS:.0f} ms")
    for repeat in range(options.repeats):
        for name, batching in BATCHING.items():
            latencies = ask(options.repository / options.model, batching, options.requests)
            p50, p99 = np.percentile(latencies, [50, 99])
            stalled = int((latencies > STALLED_MS).sum())
            table.add_row(name, str(repeat), f"{p50:.2f}", f"{p99:.2f}", f"{latencies.max():.1f}", str(stalled))
    Console().print(table)


def ask(model: Path, batching: str, requests: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Serve one model with this batching and return the latencies of so many requests in ms."""
    with tempfile.TemporaryDirectory(prefix="coin_export_probe_") as folder:
        copy = Path(shutil.copytree(model, Path(folder) / model.name))
        config = read_config(copy / "config.pbtxt")
        config.ClearField("dynamic_batching")
        (copy / "config.pbtxt").write_text(f"{config}\n{batching}\n", encoding="utf-8")
        parse_config((copy / "config.pbtxt").read_text(encoding="utf-8"), str(copy))
        with EmbeddedServer(Path(folder)) as server:
            client = grpc.InferenceServerClient(server.grpc_address)
            inputs = []
            for item in config.input:
                array = np.zeros((1, *item.dims), np.float32)
                inputs.append(grpc.InferInput(item.name, list(array.shape), "FP32"))
                inputs[-1].set_data_from_numpy(array)
            latencies = np.empty(requests)
            for index in range(requests):
                start = time.perf_counter()
                client.infer(model.name, inputs)
                latencies[index] = 1e3 * (time.perf_counter() - start)
            client.close()
    return latencies


if __name__ == "__main__":
    main()
