import torch
from torch import nn

from coin_export.model.state import check_finite, first_names, state_digest
from tests.model.user_models import tied_twice


def test_the_digest_depends_on_names_dtypes_shapes_and_contents_only() -> None:
    base = {"a": torch.arange(4.0), "b": torch.tensor(True), "c": torch.ones(2, dtype=torch.bfloat16)}
    assert state_digest(base).startswith("sha256:")
    assert state_digest(dict(reversed(base.items()))) == state_digest(base)
    assert state_digest({**base, "a": torch.arange(8.0)[::2] / 2}) == state_digest(base)  # other strides
    others = [
        {**base, "a": torch.arange(4.0) + 1e-6},
        {**base, "a": torch.arange(4.0).reshape(2, 2)},
        {**base, "a": torch.arange(4.0).double()},
        {**base, "b": torch.tensor(False)},
        {"z": base["a"], "b": base["b"], "c": base["c"]},
        {"a": base["a"]},
    ]
    assert len({state_digest(state) for state in [base, *others]}) == 7


def test_names_of_tied_tensors_are_found() -> None:
    first = first_names(tied_twice())
    assert first == {f"{key}.{name}": f"a.{name}" for key in "abc" for name in ("weight", "bias")}


def test_a_mask_may_hold_minus_infinity() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(module, "model")
