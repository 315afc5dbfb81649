"""The diagonal Fisher information, slow and obvious: float64, one output and one point at a time, plain autograd."""

import copy
from collections.abc import Mapping

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.model.signature import call, to_tensors

Diagonal = dict[str, torch.Tensor]


def double_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def output_gradients(
    module: torch.nn.Module, point: Mapping[str, torch.Tensor], output_names: tuple[str, ...], blocks: str
) -> tuple[list[torch.Tensor], list[list[Diagonal]]]:
    """Return each block of outputs (one output, or one softmax of it) and the gradient of each of its elements."""
    named = call(module, point, output_names)
    parameters = dict(module.named_parameters())
    flat: list[torch.Tensor] = []
    for tensor in named.values():
        flat += list(tensor.reshape(-1, tensor.shape[-1])) if blocks == "softmax" else [tensor.reshape(-1)]
    gradients = []
    for block in flat:
        rows = []
        for element in block:
            found = torch.autograd.grad(element, list(parameters.values()), retain_graph=True, allow_unused=True)
            rows.append(
                {
                    name: torch.zeros_like(parameter) if gradient is None else gradient
                    for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
                }
            )
        gradients.append(rows)
    return [block.detach() for block in flat], gradients


def reference_fisher(
    module: torch.nn.Module, calibration: CalibrationInputs, output_names: tuple[str, ...], likelihood: str
) -> Diagonal:
    """Average over points of: gaussian, sum_c (df_c)^2; categorical, sum_y p_y (d log p_y)^2 of each softmax."""
    module = copy.deepcopy(module).double().requires_grad_(True)
    total = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    for index in range(len(calibration)):
        point = double_inputs(to_tensors(calibration.take(slice(index, index + 1)).arrays))
        blocks = "softmax" if likelihood == "categorical" else "whole"
        for outputs, gradients in zip(*output_gradients(module, point, output_names, blocks), strict=True):
            probabilities = outputs.softmax(0)
            for name in total:
                rows = torch.stack([gradient[name] for gradient in gradients])
                if likelihood == "gaussian":
                    total[name] += rows.square().sum(0)
                else:
                    mean = torch.tensordot(probabilities, rows, dims=1)
                    total[name] += torch.tensordot(probabilities, (rows - mean).square(), dims=1)
    return {name: tensor.detach() / len(calibration) for name, tensor in total.items()}
