import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from coin_export.client import SyncCodedClient
from coin_export.datasets.calibration import Array
from coin_export.errors import TritonNotFoundError, UndecodableError
from coin_export.repository.options import RepositoryOptions
from coin_export.serve.embedded import EmbeddedServer
from coin_export.serve.tritonserver import find_tritonserver
from tests.repository.groups import build

try:
    find_tritonserver()
except TritonNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.e2e
HELD_BACK_US = 300_000


def ask(server: EmbeddedServer, points: int, timeout_us: int | None = None) -> Array:
    values = np.ones((points, 4), dtype=np.float32)
    request = InferInput("x", list(values.shape), "FP32")
    request.set_data_from_numpy(values)
    client = InferenceServerClient(server.grpc_address)
    try:
        answer: Array = client.infer("c", [request], timeout=timeout_us).as_numpy("logits").copy()
        return answer
    finally:
        client.close()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(RepositoryOptions(), id="defaults"),
        pytest.param(RepositoryOptions(max_batch_size=0), id="no-maximum"),
        pytest.param(RepositoryOptions(dynamic_batching=False, instance_count=2), id="no-dynamic-batching"),
    ],
)
def test_a_real_server_takes_what_is_written(options: RepositoryOptions, tmp_path: Path) -> None:
    build(tmp_path / "models", tmp_path / "files", options=options)
    with EmbeddedServer(tmp_path / "models") as server:
        assert [ask(server, points).shape for points in (1, 5)] == [(1, 3), (5, 3)]


def test_a_request_s_own_timeout_is_honoured_while_it_queues(tmp_path: Path) -> None:
    options = RepositoryOptions(max_queue_delay_us=HELD_BACK_US, queue_timeout_us=60_000_000)
    build(tmp_path / "models", tmp_path / "files", options=options)
    with EmbeddedServer(tmp_path / "models") as server, pytest.raises(InferenceServerException, match="timeout"):
        ask(server, 1, timeout_us=20_000)


def test_what_is_left_of_a_deadline_keeps_a_server_from_stale_work(tmp_path: Path) -> None:
    options = RepositoryOptions(max_queue_delay_us=HELD_BACK_US, queue_timeout_us=60_000_000)
    build(tmp_path / "models", tmp_path / "files", options=options)
    with EmbeddedServer(tmp_path / "models") as server, SyncCodedClient([server.grpc_address]) as client:
        with pytest.raises(UndecodableError):
            client.infer({"x": np.ones((1, 4), np.float32)}, deadline=0.05, timeout="deadline")
        with InferenceServerClient(server.grpc_address) as triton:
            for _ in range(1000):
                counts = [triton.get_inference_statistics(model).model_stats[0] for model in ("a", "b")]
                if all(model.inference_stats.fail.count for model in counts):
                    break
                time.sleep(0.01)
            assert [model.execution_count for model in counts] == [0, 0], "it refused what nobody waited for"


def test_without_a_queue_timeout_a_request_s_own_counts_for_nothing(tmp_path: Path) -> None:
    options = RepositoryOptions(max_queue_delay_us=HELD_BACK_US)
    build(tmp_path / "models", tmp_path / "files", options=options)
    with EmbeddedServer(tmp_path / "models") as server:
        assert ask(server, 1, timeout_us=20_000).shape == (1, 3)
