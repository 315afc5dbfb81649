from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from coin_export.code.manifest import Tensor
from coin_export.errors import ManifestError, RepositoryError
from coin_export.model.signature import Signature, TensorSpec
from coin_export.repository.config import (
    config_text,
    parse_config,
    read_config,
    read_manifest,
    triton_tensors,
    whole_shapes,
)
from coin_export.repository.options import RepositoryOptions
from tests.repository.groups import make_group


def test_a_configuration_says_how_to_serve_and_carries_the_group(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    config = parse_config(config_text(group, "c", RepositoryOptions()), "here")
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("c", "onnxruntime", "", 64)
    assert [(item.name, item.data_type, list(item.dims)) for item in config.input] == [
        ("x", model_config_pb2.TYPE_FP32, [4])
    ]
    assert [(item.name, item.data_type, list(item.dims)) for item in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [3])
    ]
    assert dict(config.metric_tags) == {"group": "digits", "role": "coded"}
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert [item.count for item in config.instance_group] == [1]
    assert read_manifest(config, "here") == (group, "c")


def test_the_default_batching_waits_for_nobody_and_has_no_queue_policy(tmp_path: Path) -> None:
    config = parse_config(config_text(make_group(tmp_path), "a", RepositoryOptions()), "here")
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert not config.dynamic_batching.HasField("default_queue_policy")


def test_a_queue_timeout_may_be_shortened_by_a_request(tmp_path: Path) -> None:
    text = config_text(make_group(tmp_path), "a", RepositoryOptions(queue_timeout_us=5000))
    assert parse_config(text, "here").dynamic_batching.default_queue_policy.allow_timeout_override


def test_chosen_options_are_written(tmp_path: Path) -> None:
    options = RepositoryOptions(
        max_batch_size=8,
        intra_op_threads=2,
        instance_count=3,
        max_queue_delay_us=100,
        queue_timeout_us=5000,
        max_queue_size=7,
    )
    config = parse_config(config_text(make_group(tmp_path), "a", options), "here")
    assert (config.max_batch_size, config.instance_group[0].count) == (8, 3)
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (5000, 7)


def test_without_dynamic_batching_there_is_no_such_block(tmp_path: Path) -> None:
    text = config_text(make_group(tmp_path), "a", RepositoryOptions(dynamic_batching=False))
    assert not parse_config(text, "here").HasField("dynamic_batching")


def test_a_maximum_of_zero_is_spelled_out_and_moves_the_batch_into_the_dims(tmp_path: Path) -> None:
    text = config_text(make_group(tmp_path), "a", RepositoryOptions(max_batch_size=0))
    assert text.splitlines()[-1] == "max_batch_size: 0"
    config = parse_config(text, "here")
    assert list(config.input[0].dims) == [-1, 4]
    assert not config.HasField("dynamic_batching")
    assert whole_shapes(config)[0] == (Tensor("x", "FP32", (-1, 4)),)


def test_whole_shapes_are_the_same_with_and_without_a_maximum(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    shapes = [
        whole_shapes(parse_config(config_text(group, "a", RepositoryOptions(max_batch_size=size)), "here"))
        for size in (0, 1, 64)
    ]
    assert shapes == [((Tensor("x", "FP32", (-1, 4)),), (Tensor("logits", "FP32", (-1, 3)),))] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_batch_size": -1}, "max_batch_size"),
        ({"instance_count": 0}, "instance_count"),
        ({"intra_op_threads": 1.5}, "intra_op_threads"),
        ({"platform": "x"}, "platform"),
        ({"dynamic_batching": False, "max_queue_size": 3}, "max_queue_size: Triton has a queue policy with"),
        ({"max_batch_size": 0, "queue_timeout_us": 3}, "queue_timeout_us: Triton has a queue policy with"),
    ],
)
def test_options_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RepositoryOptions.model_validate(fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "a"\n\nbackends: "x"\n', r'config.pbtxt:3: not a Triton .* no field named "backends"'),
        ('name: "a"\nname: "b"\n', r"config.pbtxt:2: .* multiple"),
        ("input {\n data_type: TYPE_FP33\n}", r"config.pbtxt:2: .* no value named TYPE_FP33"),
        ('max_batch_size: "8"', r"config.pbtxt:1: .* integer"),
        ("input [", r"config.pbtxt:1"),
    ],
)
def test_configurations_that_are_not_strictly_valid_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    with pytest.raises(RepositoryError, match=message) as caught:
        read_config(path)
    assert str(tmp_path) in str(caught.value)


def test_configurations_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"config.pbtxt: cannot be read"):
        read_config(tmp_path / "config.pbtxt")
    (tmp_path / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"config.pbtxt: cannot be read"):
        read_config(tmp_path / "config.pbtxt")


def test_a_configuration_without_a_group_has_none_and_a_broken_one_is_refused() -> None:
    assert read_manifest(parse_config('name: "a"', "here"), "here") is None
    broken = parse_config('parameters { key: "coin_export" value { string_value: "{" } }', "here")
    with pytest.raises(ManifestError, match="here"):
        read_manifest(broken, "here")


@pytest.mark.parametrize(
    ("dtype", "triton"),
    [
        (torch.float32, "FP32"),
        (torch.float16, "FP16"),
        (torch.float64, "FP64"),
        (torch.int64, "INT64"),
        (torch.int32, "INT32"),
        (torch.uint8, "UINT8"),
        (torch.bool, "BOOL"),
    ],
)
def test_dtypes_are_triton_s_and_known_to_its_protobuf(dtype: torch.dtype, triton: str) -> None:
    inputs, outputs = triton_tensors(
        Signature((TensorSpec("x", dtype, (2, 3)),), (TensorSpec("y", torch.float32, (5,)),))
    )
    assert inputs == (Tensor("x", triton, (2, 3)),)
    assert outputs == (Tensor("y", "FP32", (5,)),)
    assert model_config_pb2.DataType.Value(f"TYPE_{triton}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("x", torch.bfloat16, (2,)), "input 'x' is torch.bfloat16, .* does not take"),
        (TensorSpec("x", torch.int64, ()), r"input 'x' is one number per point.* make it \(points, 1\)"),
    ],
)
def test_tensors_that_triton_does_not_take_are_refused(spec: TensorSpec, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        triton_tensors(Signature((spec,), ()))
