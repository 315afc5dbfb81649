"""What one writes without this package: one call to each model, all awaited together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import tritonclient.grpc.aio as triton

from coin_export.datasets.calibration import Array


class BareGather:
    """``asyncio.gather`` over tritonclient's calls.

    Args:
        addresses: ``host:port`` by model.
        input_name: of the models' only input, FP32.
        output_name: of the output to ask for.
    """

    def __init__(self, addresses: Mapping[str, str], input_name: str, output_name: str) -> None:
        self._clients = {model: triton.InferenceServerClient(address) for model, address in addresses.items()}
        self._input_name = input_name
        self._output_name = output_name
        self._outputs = [triton.InferRequestedOutput(output_name)]

    @property
    def models(self) -> Sequence[str]:
        """Names of the models, in the order of their answers."""
        return list(self._clients)

    async def infer(self, inputs: Array) -> list[Array]:
        """Ask every model."""
        tensor = triton.InferInput(self._input_name, inputs.shape, "FP32")
        tensor.set_data_from_numpy(inputs)
        results = await asyncio.gather(
            *(client.infer(model, [tensor], outputs=self._outputs) for model, client in self._clients.items())
        )
        return [result.as_numpy(self._output_name) for result in results]

    async def close(self) -> None:
        """Close the connections; no call may be under way."""
        for client in self._clients.values():
            await client.close()
