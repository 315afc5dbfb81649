import numpy as np
import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import CalibrationError, ModelError
from coin_export.model.signature import infer_signature, to_tensors


def test_a_forward_that_writes_into_its_input_is_refused_and_the_data_are_left_alone() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    kept = values.copy()
    module = nn.Sequential(nn.LeakyReLU(inplace=True), nn.Linear(3, 2)).eval()
    with pytest.raises(ModelError, match=r"forward writes into its input 'x'.* copy the input first"):
        infer_signature(module, CalibrationInputs({"x": values}))
    np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0, dtype=np.float32).reshape(2, 3)[::-1],
        np.arange(6.0, dtype=">f4").reshape(2, 3),
        np.broadcast_to(np.arange(3), (2, 3)),
    ],
    ids=["reversed", "big-endian", "read-only"],
)
def test_arrays_of_any_layout_become_tensors(array: Array) -> None:
    tensor = to_tensors({"x": array})["x"]
    torch.testing.assert_close(tensor, torch.tensor(array.tolist(), dtype=tensor.dtype))
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(CalibrationError, match="input 'x' holds <U1; it must hold numbers"):
        CalibrationInputs({"x": np.array(["a", "b"])})
