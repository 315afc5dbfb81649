"""Models with six and two classes in one group: coded at six, asked and answered each at its own size."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from coin_export.client import CodedClient
from coin_export.client.answer import Source
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.refine import RefineOptions
from coin_export.pipeline import build_group
from coin_export.pipeline.loading import Labelled
from coin_export.recipe import BuildOptions
from coin_export.repository.check import verify_repository
from coin_export.serve.embedded import EmbeddedServer

CLASSES = {"questions": 6, "subjectivity": 2}


def classifier(classes: int, seed: int) -> nn.Module:
    """A common backbone, slightly tuned, and a head that begins at a seed of its own."""
    torch.manual_seed(0)
    backbone = nn.Linear(8, 16)
    torch.manual_seed(seed)
    with torch.no_grad():
        backbone.weight.add_(0.02 * torch.randn_like(backbone.weight))
    return nn.Sequential(backbone, nn.Tanh(), nn.Linear(16, classes))


@pytest.mark.e2e
async def test_heads_of_unequal_size_all_the_way(tmp_path: Path) -> None:
    models = {name: classifier(classes, seed + 1) for seed, (name, classes) in enumerate(CLASSES.items())}
    inputs = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    labels = {name: module(torch.from_numpy(inputs)).argmax(1).numpy() for name, module in models.items()}
    report = build_group(
        "text",
        models,
        {"x": inputs},
        tmp_path / "repository",
        options=BuildOptions(encoder=RefineOptions(budget=12_800, trial_steps=10), outputs=("logits",)),
        evaluation={name: Labelled(CalibrationInputs({"x": inputs}), values) for name, values in labels.items()},
    )
    assert [report.group.outputs_of(member)[0].shape for member in report.group.members] == [(6,), (2,), (6,)]
    assert all(finding.ok for finding in verify_repository(tmp_path / "repository"))
    assert all(record.degraded_accuracy is not None for record in report.group.quality)
    for name, module in models.items():
        session = onnxruntime.InferenceSession(tmp_path / "repository" / name / "1" / "model.onnx")
        (alone,) = session.run(["logits"], {"x": inputs[:3]})
        np.testing.assert_allclose(alone, module(torch.from_numpy(inputs[:3])).detach().numpy(), atol=1e-5)

    for lost in CLASSES:
        others = [member.name for member in report.group.members if member.name != lost]
        alive = EmbeddedServer(tmp_path / "repository", models=others)
        dying = EmbeddedServer(tmp_path / "repository", models=[lost])
        with alive, dying:
            async with CodedClient([alive.grpc_address, dying.grpc_address]) as client:
                direct = await client.infer({"x": inputs[:5]}, deadline=20.0)
                assert [answer.source for answer in direct.values()] == [Source.DIRECT] * 2
                dying.stop()
                answers = await client.infer({"x": inputs[:5]}, deadline=20.0)
        assert answers[lost].source is Source.DECODED
        for name, classes in CLASSES.items():
            found, wanted = answers[name].outputs["logits"], direct[name].outputs["logits"]
            assert found.shape == wanted.shape == (5, classes)
        error = np.linalg.norm(answers[lost].outputs["logits"] - direct[lost].outputs["logits"])
        assert error < 0.5 * np.linalg.norm(direct[lost].outputs["logits"])
