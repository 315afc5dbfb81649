"""Every kind of network the whole way: built, exported, verified, and served by one real server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput

from coin_export.client import CodedClient
from coin_export.code.manifest import Group
from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.encode.refine import RefineOptions
from coin_export.evaluate.outputs import run_onnx
from coin_export.pipeline import build_group
from coin_export.recipe import BuildOptions
from coin_export.repository.check import verify_repository
from coin_export.repository.layout import read_repository
from coin_export.serve.embedded import EmbeddedServer
from tests.e2e.kinds import KINDS, Kind

pytestmark = pytest.mark.e2e
ASKED = 4
FEW_STEPS = BuildOptions(encoder=RefineOptions(budget=1280, trial_steps=5))


def tolerance(kind: Kind) -> float:
    return 1e-2 if kind is KINDS["float16"] else 1e-4


def originals(name: str) -> dict[str, torch.nn.Module]:
    return {f"{name}_{seed}": KINDS[name].tuned(seed) for seed in (1, 2)}


def asked(name: str) -> dict[str, Array]:
    return {key: array[:ASKED] for key, array in KINDS[name].inputs().items()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks") / "repository"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """One server for all that has been built by then."""
    with EmbeddedServer(repository, ready_timeout_s=240.0) as running:
        yield running


@pytest.mark.parametrize("name", KINDS)
def test_built_and_exported(name: str, repository: Path) -> None:
    report = build_group(name, originals(name), KINDS[name].inputs(), repository, options=FEW_STEPS)
    assert [member.name for member in report.group.members] == [f"{name}_1", f"{name}_2", f"{name}_coded_0"]
    for check in report.onnx_checks.values():
        assert check.max_relative_error < tolerance(KINDS[name])
    # The originals are near each other, so decoding must be far better than answering nothing, an error of 1.
    assert all(record.relative_error < 0.5 for record in report.group.quality)


def test_verified(repository: Path) -> None:
    findings = verify_repository(repository)
    assert findings and all(finding.ok for finding in findings), findings


@pytest.mark.parametrize("name", KINDS)
async def test_served(name: str, repository: Path, server: EmbeddedServer) -> None:
    held = read_repository(repository)
    group, inputs = held.group(name), asked(name)
    for member in group.members:
        found = ask(server, group, member.name, inputs)
        for output, wanted in run_onnx(held.onnx_path(member.name), CalibrationInputs(inputs)).items():
            np.testing.assert_allclose(found[output], wanted, rtol=1e-3, atol=tolerance(KINDS[name]))
    async with CodedClient([server.grpc_address], group=name) as client:
        answers = await client.infer(inputs, deadline=30.0)
    for model, module in originals(name).items():
        expected = module.float()(*(torch.from_numpy(array) for array in widened(inputs).values())).detach().numpy()
        (answer,) = answers[model].outputs.values()
        np.testing.assert_allclose(answer.astype(np.float32), expected, rtol=1e-2, atol=tolerance(KINDS[name]))


def widened(inputs: dict[str, Array]) -> dict[str, Array]:
    return {key: array.astype(np.float32) if array.dtype == np.float16 else array for key, array in inputs.items()}


def ask(server: EmbeddedServer, group: Group, model: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Ask one model alone, coded ones too, as a client that knows nothing of groups does."""
    requests = []
    for tensor in group.inputs:
        request = InferInput(tensor.name, list(inputs[tensor.name].shape), tensor.dtype)
        request.set_data_from_numpy(inputs[tensor.name])
        requests.append(request)
    client = InferenceServerClient(server.grpc_address)
    try:
        result = client.infer(model, requests)
        return {tensor.name: result.as_numpy(tensor.name).copy() for tensor in group.outputs}
    finally:
        client.close()


@pytest.mark.parametrize(("name", "dtype"), [("float16", "FP16"), ("bfloat16", "FP32")])
def test_half_precision_is_exported_as_what_triton_takes(name: str, dtype: str, repository: Path) -> None:
    """Float16 as it is; bfloat16, which Triton's ONNX Runtime backend refuses, as float32."""
    held = read_repository(repository)
    assert held.group(name).outputs[0].dtype == dtype
    wanted = onnx.TensorProto.FLOAT16 if dtype == "FP16" else onnx.TensorProto.FLOAT
    for member in held.group(name).members:
        stored = onnx.load(held.onnx_path(member.name)).graph.initializer
        assert {tensor.data_type for tensor in stored if tensor.dims} == {wanted}


def test_tied_weights_are_stored_once(repository: Path) -> None:
    held = read_repository(repository)
    for member in held.group("tied").members:
        stored = onnx.load(held.onnx_path(member.name)).graph.initializer
        sizes = [sorted(tensor.dims) for tensor in stored if len(tensor.dims) == 2]
        assert sizes.count([8, 11]) == 1
