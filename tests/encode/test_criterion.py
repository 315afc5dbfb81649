from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from coin_export.encode.criterion import Criterion, CriterionName, _decodings
from coin_export.evaluate.accuracy import decoded_outputs

CODES = [
    LinearCode.from_rows([[0.2, 0.8]]),
    LinearCode.from_rows([[0.2, 0.3, 0.5]]),
    default_code(3, 2),
    default_code(4, 3),
]


def answers(code: LinearCode, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of coded models and originals."""
    torch.manual_seed(0)
    return torch.randn(code.m, *shape, dtype=torch.float64), torch.randn(code.k, *shape, dtype=torch.float64)


def divergence(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The mean of both directions, for logits of shape (points, classes)."""
    logs = left.log_softmax(-1), right.log_softmax(-1)
    ways = [functional.kl_div(*way, reduction="batchmean", log_target=True) for way in (logs, logs[::-1])]
    return torch.stack(ways).mean()


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.k}+{code.m}")
@pytest.mark.parametrize("name", get_args(CriterionName))
def test_it_is_the_mean_over_what_the_client_decodes(code: LinearCode, name: CriterionName) -> None:
    coded, originals = answers(code, 5, 4)
    members = [{"y": tensor.numpy()} for tensor in [*originals, *coded]]
    values, gains = [], []
    for pattern in code.erasure_patterns():
        left = [index for index in range(code.n) if index not in pattern]
        for lost in (index for index in pattern if index < code.k):
            decoded = torch.from_numpy(np.asarray(decoded_outputs(code, members, pattern, lost)["y"]))
            error = (decoded - originals[lost]).square().mean()
            values.append(divergence(decoded, originals[lost]) if name == "divergence" else error)
            gains.append(code.decoding(left, [lost]).noise_gain[0])
    scale = np.mean(np.square(gains)) if name == "error" else 1.0
    wanted = float(torch.stack(values).mean()) / scale
    assert float(Criterion(code, name)([coded], [originals])) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", get_args(CriterionName))
def test_exact_combinations_have_none(name: CriterionName) -> None:
    code = default_code(3, 2)
    _, originals = answers(code, 5, 2, 4)
    coded = torch.einsum("mk,k...->m...", torch.tensor(code.parities, dtype=torch.float64), originals)
    assert float(Criterion(code, name)([coded], [originals])) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 3, 4)], ids=["values", "one class", "maps"])
def test_what_is_no_distribution_over_classes_counts_by_its_error(shape: tuple[int, ...]) -> None:
    code = default_code(3, 1)
    coded, originals = answers(code, *shape)
    wanted = float((coded[0] - originals.mean(0)).square().mean())
    for name in get_args(CriterionName):
        assert float(Criterion(code, name)([coded], [originals])) == pytest.approx(wanted, rel=1e-5)


def test_outputs_add_up() -> None:
    code = default_code(2, 1)
    first, second = answers(code, 5, 4), answers(code, 5, 2, 3)
    both = [first[0], second[0]], [first[1], second[1]]
    in_nats, error = Criterion(code, "divergence"), Criterion(code, "error")
    single = [float(in_nats([coded], [own])) for coded, own in (first, second)]
    assert float(in_nats(*both)) == pytest.approx(sum(single))
    weighted = [float(error([coded], [own])) * coded[0].numel() for coded, own in (first, second)]
    assert float(error(*both)) == pytest.approx(sum(weighted) / 50)


def test_classes_that_a_padded_head_lacks_do_not_count_for_it() -> None:
    """Two originals of two and of four classes: the first one's decoded answer is cut to its own two."""
    code = default_code(2, 1)
    coded, originals = answers(code, 5, 4)
    originals[0, :, 2:] = 0
    found = float(Criterion(code, "divergence")([coded], [originals]))
    decoded = originals + 2 * (coded - originals.mean(0))
    values = [
        divergence(left, right)
        for left, right in [(decoded[0, :, :2], originals[0, :, :2]), (decoded[1], originals[1])]
    ]
    assert found == pytest.approx(float(torch.stack(values).mean()), rel=1e-5)


def test_a_single_class_of_a_padded_head_counts_by_its_error() -> None:
    """A softmax over one class says nothing; the wider head's divergence is what it was."""
    code = default_code(2, 1)
    coded, originals = answers(code, 5, 4)
    originals[0, :, 1:] = 0
    criterion = Criterion(code, "divergence")
    assert not criterion.in_nats([originals]) and criterion.in_nats([originals[1:]])
    decoded = originals + 2 * (coded - originals.mean(0))
    wide = divergence(decoded[1], originals[1])
    single = (decoded[0, :, 0] - originals[0, :, 0]).square().mean() / 4  # over the amplification, of which 2 * 2
    assert float(criterion([coded], [originals])) == pytest.approx(float(wide + single) / 2, rel=1e-5)
    coded[..., 1:] += 100  # of classes that only the other one has
    assert float(criterion([coded], [originals])) > float(wide + single)


@pytest.mark.parametrize(("k", "m"), [(16, 2), (8, 3)])
def test_of_a_large_code_losses_of_every_size_and_every_original_count(k: int, m: int) -> None:
    wanted, weights = _decodings(default_code(k, m))
    used = (weights != 0).sum(1)
    assert len(wanted) < 200 * m
    assert {1, m} <= set(used.tolist())
    counts = wanted.bincount(minlength=k)
    assert counts.max() < 2 * counts.min()
