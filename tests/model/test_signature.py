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


def points() -> CalibrationInputs:
    return CalibrationInputs({"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)})


def test_an_output_with_the_name_of_an_input_is_refused() -> None:
    with pytest.raises(ModelError, match="x names an input and an output; give outputs names of their own"):
        infer_signature(nn.Linear(3, 2).eval(), points(), ["x"])


class Noisy(nn.Linear):
    """Drops features in eval mode, too, for several samples of an answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


def test_a_model_that_draws_its_answers_is_refused_and_draws_none_of_the_users_numbers() -> None:
    module = Noisy(3, 8).eval()
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="output 'output' is another when the same points are asked again"):
        infer_signature(module, points())
    assert torch.equal(torch.get_rng_state(), before)


class Counting(nn.Linear):
    """Counts its calls, or only whether there was one, as a table that is made when first needed."""

    def __init__(self, always: bool) -> None:
        super().__init__(3, 2)
        self.always = always
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = self.get_buffer("count")
        if self.always or count == 0:
            count += 1
        return super().forward(x)


def test_a_model_that_changes_its_buffers_for_ever_is_refused() -> None:
    with pytest.raises(ModelError, match=r"forward changes count of a model in eval mode.*self\.training"):
        infer_signature(Counting(always=True).eval(), points())
    infer_signature(Counting(always=False).eval(), points())
