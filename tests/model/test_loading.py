import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from coin_export.errors import ModelError, NonFiniteError
from coin_export.model.loading import import_object, load_module, read_state_dict
from tests.model.user_models import Net, tied, tied_twice

HERE = "tests.model.user_models"


def trained(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    with torch.no_grad():
        net(torch.randn(8, 3))
    return net


def equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_objects_are_imported() -> None:
    assert import_object("math:sqrt") is math.sqrt
    assert import_object("pathlib:Path.cwd") == Path.cwd
    assert import_object(f"{HERE}:Nested.make") is Net


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("math", "write package.module:attribute"),
        ("math:", "write package.module:attribute"),
        (":sqrt", "write package.module:attribute"),
        ("math:sq rt", "write package.module:attribute"),
        (".math:sqrt", "write package.module:attribute"),
        ("no_such_package.module:make", "no module 'no_such_package'; install it or put its folder on PYTHONPATH"),
        ("tests.model.absent:make", "no module 'tests.model.absent'"),
        ("tests.model.needs_missing:make", "importing .* failed: No module named 'no_such_dependency_anywhere'"),
        ("tests.model.broken_module:make", "failed: OSError: a library is missing"),
        ("math:no_such_thing", "'math' has no attribute 'no_such_thing'"),
        (f"{HERE}:Nested.other", "no attribute 'Nested.other'"),
    ],
)
def test_bad_import_paths_are_refused(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_object(path)


@pytest.mark.parametrize(
    "save",
    [
        lambda net, path: save_file(net.state_dict(), path.with_suffix(".safetensors")),
        lambda net, path: torch.save(net.state_dict(), path.with_suffix(".pt")),
        lambda net, path: torch.save({"state_dict": net.state_dict(), "epoch": 3}, path.with_suffix(".ckpt")),
        lambda net, path: torch.save({"model": net.state_dict(), "args": {"lr": 0.1}}, path.with_suffix(".pth")),
        lambda net, path: torch.save(net.state_dict(), path.with_suffix(".bin"), _use_new_zipfile_serialization=False),
    ],
    ids=["safetensors", "torch", "state_dict", "model", "legacy"],
)
def test_every_kind_of_checkpoint_is_loaded(tmp_path: Path, save: Callable[[nn.Module, Path], None]) -> None:
    net = trained()
    save(net, tmp_path / "net")
    (path,) = tmp_path.iterdir()
    loaded = load_module(f"{HERE}:Net", {"width": 4}, path)
    assert isinstance(loaded, Net)
    assert not any(module.training for module in loaded.modules())
    assert equal(loaded.state_dict(), net.state_dict())


@pytest.mark.parametrize("make", ["tied", "tied_twice"])
def test_tied_weights_saved_once_are_loaded_and_stay_tied(tmp_path: Path, make: str) -> None:
    network = {"tied": tied, "tied_twice": tied_twice}[make]()
    save_model(network, str(tmp_path / "tied.safetensors"))
    loaded = load_module(f"{HERE}:{make}", {}, tmp_path / "tied.safetensors")
    assert equal(loaded.state_dict(), network.state_dict())
    assert len(list(loaded.parameters())) == len(list(network.parameters()))


def test_tied_weights_that_differ_in_the_checkpoint_are_refused(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in tied().state_dict().items()}
    state["head.weight"] += 1
    save_file(state, tmp_path / "untied.safetensors")
    with pytest.raises(ModelError, match=r"embedding.weight and head.weight differ, .* one tied weight"):
        load_module(f"{HERE}:tied", {}, tmp_path / "untied.safetensors")


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (f"{HERE}:NUMBER", {}, "is a int; a factory must be callable"),
        (f"{HERE}:not_a_module", {}, r"returned a int; it must return a torch\.nn\.Module"),
        (f"{HERE}:fails", {}, r"failed with arguments \{\}: KeyError: 'no such size'"),
        (f"{HERE}:Net", {"depth": 2}, r"failed with arguments \{'depth': 2\}: TypeError: .*depth"),
    ],
)
def test_bad_factories_are_refused(factory: str, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=message):
        load_module(factory, arguments, tmp_path / "net.pt")


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(tmp_path: Path) -> None:
    state = trained().state_dict()
    del state["hidden.weight"]
    state["body.weight"] = torch.ones(1)
    state["head.weight"] = torch.ones(5, 4)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(ModelError) as caught:
        load_module(f"{HERE}:Net", {"width": 4}, tmp_path / "net.safetensors")
    for part in ("net.safetensors", f"{HERE}:Net", "width", "hidden.weight", "body.weight", "head.weight", "[5, 4]"):
        assert part in str(caught.value)


class Payload:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "run")}, tmp_path / "payload.pt")
    torch.save(trained(), tmp_path / "module.pt")
    for name in ("payload.pt", "module.pt"):
        with pytest.raises(ModelError, match=rf"{name}: holds pickled objects.*save model.state_dict\(\)"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_corrupt_checkpoints_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(trained().state_dict(), path)
    else:
        save_file(trained().state_dict(), path)
    path.write_bytes({"empty": b"", "garbage": b"not a checkpoint", "truncated": path.read_bytes()[:200]}[damage])
    with pytest.raises(ModelError, match=rf"net{suffix}: (not a|the) .*"):
        read_state_dict(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(ModelError, match="no such checkpoint"):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, r"a mapping with keys \['epoch', 'optimizer'\]"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        ({}, "a mapping"),
    ],
)
def test_checkpoints_without_a_state_dict_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=f"holds no state dict but {message}"):
        read_state_dict(tmp_path / "other.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    state = copy.deepcopy(trained().state_dict())
    state["hidden.bias"][0] = value
    state["norm.running_var"][1] = value
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(NonFiniteError, match=r"net.safetensors: NaN or infinity in hidden.bias, norm.running_var;"):
        load_module(f"{HERE}:Net", {}, tmp_path / "net.safetensors")
