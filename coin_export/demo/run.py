"""The whole way on real images: train, build, serve, lose servers, and count what every answer was worth."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coin_export.client import AtOnce, CodedClient, Policy, Source
from coin_export.code.decode import Array
from coin_export.datasets import bundled
from coin_export.demo.group import EPOCHS, build_on_images, train_side_by_side
from coin_export.demo.phases import INPUT, PhaseResult, run_phase
from coin_export.pipeline import BuildReport
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all

_GROUP = "demo"
_CALIBRATION_POINTS_PER_SET = 500
_WARM_UP_REQUESTS = 20
_RECOVERY_S = 10.0


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration measured.

    Attributes:
        report: the build's own report.
        phases: one per phase, in order.
        original_accuracy: accuracy in % of the originals on their own test images, by model.
        seconds: wall-clock time of each stage.
        versions: of what took part.
    """

    report: BuildReport
    phases: tuple[PhaseResult, ...]
    original_accuracy: Mapping[str, float]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]

    def decoded_accuracy(self, model: str) -> float:
        """Accuracy in % of what was returned for ``model`` in the phase that decoded all its answers."""
        tallies = [phase.models[model] for phase in self.phases]
        return max(tallies, key=lambda tally: tally.decoded).accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``demo.json``."""
        return {
            "models": {
                model: {
                    "original_accuracy": original,
                    "decoded_accuracy": self.decoded_accuracy(model),
                    "normalized_decoding_accuracy": 100.0 * self.decoded_accuracy(model) / original,
                }
                for model, original in self.original_accuracy.items()
            },
            "phases": [_phase_json(phase) for phase in self.phases],
            "encoder": self.report.group.encoder,
            "onnx_max_abs_error": self.report.onnx_max_abs_error,
            "servers": {"coded": len(self.report.group.members), "replication": 2 * len(self.original_accuracy)},
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
        }


def _phase_json(phase: PhaseResult) -> dict[str, Any]:
    return {
        "name": phase.name,
        "requests": phase.requests,
        "failed": phase.failed,
        "direct": phase.direct,
        "decoded": phase.decoded,
        "p50_ms": phase.percentile_ms(50),
        "p99_ms": phase.percentile_ms(99),
        "models": {
            model: {
                "direct": tally.direct,
                "decoded": tally.decoded,
                "accuracy": tally.accuracy,
                "p50_ms": tally.percentile_ms(50),
                "p99_ms": tally.percentile_ms(99),
            }
            for model, tally in phase.models.items()
        },
    }


@dataclass
class _Stages:
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str, total: int | None = None) -> Iterator[Any]:
        task = self.progress.add_task(title, total=total)
        start = time.perf_counter()
        yield lambda message=None: self.progress.update(
            task, advance=1 if message is None else 0, description=title if message is None else f"{title}: {message}"
        )
        self.seconds[name] = time.perf_counter() - start
        done = total or 1
        self.progress.update(task, description=title, total=done, completed=done)


def run_demo(repository: Path, artifacts: Path, console: Console, encoder: str) -> DemoResult:
    """Run the demonstration and write ``demo.json`` and the servers' logs into ``artifacts``.

    The coded model is made by the encoder of that name, with its default options.

    Raises:
        CoinExportError: when a stage fails; servers are stopped and nothing temporary stays behind.
    """
    begin = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        stages = _Stages(progress)
        with stages.stage("data", "Loading bundled images"):
            sets = {name: bundled.load(name) for name in bundled.NAMES}
        with stages.stage("train", "Training two networks from one start", total=EPOCHS * len(sets)) as step:
            models = train_side_by_side(sets, step)
        with stages.stage("build", "Building the coded model and the repository") as step:
            report = build_on_images(
                _GROUP,
                models,
                sets,
                repository,
                encoder={"name": encoder},
                points_per_set=_CALIBRATION_POINTS_PER_SET,
                progress=step,
            )
        phases, versions = _serve_and_ask(report, sets, artifacts, stages)
    seconds = {**stages.seconds, **{f"build.{name}": value for name, value in report.seconds.items()}}
    seconds["total"] = time.perf_counter() - begin
    original = {member.name: member.accuracy or math.nan for member in report.group.originals}
    result = DemoResult(report, tuple(phases), original, seconds, {**_versions(), **versions})
    artifacts.mkdir(parents=True, exist_ok=True)
    (artifacts / "demo.json").write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    return result


def _serve_and_ask(
    report: BuildReport, sets: Mapping[str, bundled.ImageSet], artifacts: Path, stages: _Stages
) -> tuple[list[PhaseResult], dict[str, str]]:
    logs = artifacts / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = {
            member.name: EmbeddedServer(report.repository, models=[member.name], log_path=logs / f"{member.name}.log")
            for member in report.group.members
        }
        with stages.stage("serve", f"Starting {len(servers)} Triton servers"):
            stack.callback(lambda: stop_all(list(servers.values())))
            start_all(list(servers.values()))
        return asyncio.run(_ask(servers, sets, stages))


async def _ask(
    servers: dict[str, EmbeddedServer], sets: Mapping[str, bundled.ImageSet], stages: _Stages
) -> tuple[list[PhaseResult], dict[str, str]]:
    straggler, killed = list(sets)[:2]
    total = sum(len(images.test_labels) for images in sets.values())
    addresses = [server.grpc_address for server in servers.values()]
    phases: list[PhaseResult] = []
    async with CodedClient(addresses, policy=Policy(coded=AtOnce())) as client:
        versions = {"tritonserver": next(iter(client.server_versions.values()))}
        image = next(iter(sets.values())).test_images[:1]
        for _ in range(_WARM_UP_REQUESTS):
            await client.infer({INPUT: image})
        await _recovered(client, image, servers[straggler])
        with stages.stage("healthy", "Asking: all servers healthy", total) as step:
            phases.append(await run_phase("healthy", client, sets, step))
        with stages.stage("straggler", f"Asking: the server of {straggler} stopped (SIGSTOP)", total) as step:
            servers[straggler].suspend()
            phases.append(await run_phase("straggler", client, sets, step))
            servers[straggler].resume()
            await _recovered(client, image, servers[straggler])
            if not servers[straggler].is_alive():
                # Triton's Python backend may not survive being stopped: it shares timed locks with its model's process.
                servers[straggler].stop()
                servers[straggler] = servers[straggler].successor()
                await asyncio.to_thread(servers[straggler].start)
                await _recovered(client, image, servers[straggler])
        with stages.stage("killed", f"Asking: the server of {killed} killed (SIGKILL)", total) as step:
            servers[killed].kill()
            phases.append(await run_phase("killed", client, sets, step))
    return phases, versions


async def _recovered(client: CodedClient, image: Array, server: EmbeddedServer) -> None:
    """Wait until every model answers for itself again, or the server has ended.

    A resumed server first works off what it was sent while it was stopped. To lose another server before that would
    be two losses at once, more than one coded model makes good.
    """
    end = time.monotonic() + _RECOVERY_S
    while time.monotonic() < end and server.is_alive():
        answers = await client.infer({INPUT: image}, deadline=_RECOVERY_S)
        if all(answer.source is Source.DIRECT for answer in answers.values()):
            return
        await asyncio.sleep(0.01)


def _versions() -> dict[str, str]:
    packages = ["coin-export", "torch", "onnx", "onnxruntime-gpu", "onnxruntime", "tritonclient", "numpy"]
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
