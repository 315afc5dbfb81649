"""A web service in front of a coded group: JSON in and out, a deadline per request, 503 when it cannot be met.

    pip install 'coin-export[metrics]' fastapi uvicorn
    coin-export serve model_repository --per-model --grpc-port 8001        # as `make demo` leaves it: three servers
    python examples/fastapi_service.py 127.0.0.1:8001 127.0.0.1:8002 127.0.0.1:8003

    curl -s 127.0.0.1:8080/models                                          # what can be asked, and with which inputs
    curl -s 127.0.0.1:8080/predict -H 'content-type: application/json' \
        -d '{"inputs": {"image": [[[[0.0, ...]]]]}, "deadline_ms": 50}'    # one list per input, of shape (batch, ...)
    curl -s 127.0.0.1:8080/metrics                                         # for Prometheus

One client serves all requests of the process: it is connected when the service starts and closed when it ends.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field
from tritonclient.utils import triton_to_np_dtype

from coin_export.client import Answer, CodedClient
from coin_export.client.metrics import MetricsObserver
from coin_export.errors import RequestError, UndecodableError


class Prediction(BaseModel):
    """What is asked.

    The inputs are lists of shape (batch, ...); ``wanted`` names the models to answer for, all when it is not given.
    """

    inputs: dict[str, Any]
    wanted: list[str] | None = None
    deadline_ms: float = Field(default=100.0, gt=0)


def create_app(addresses: Sequence[str]) -> FastAPI:
    """Make the service for the servers at these addresses."""
    registry = CollectorRegistry()
    client = CodedClient(addresses, observers=[MetricsObserver(registry)])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:  # a DiscoveryError here ends the service before it takes requests
            yield

    app = FastAPI(title="coded models", lifespan=lifespan)

    @app.post("/predict")
    async def predict(prediction: Prediction) -> dict[str, Any]:
        answers = await client.infer(
            _arrays(client, prediction.inputs), wanted=prediction.wanted, deadline=prediction.deadline_ms / 1e3
        )
        return {model: _as_json(answer) for model, answer in answers.items()}

    @app.get("/models")
    async def models() -> dict[str, Any]:
        group = client.group
        return {
            "group": group.name,
            "inputs": {tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape} for tensor in group.inputs},
            "models": [member.name for member in group.originals],
            "servers": client.servers,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(UndecodableError)
    async def unavailable(request: Request, error: UndecodableError) -> JSONResponse:
        # The caller's chance: what did arrive is as good as ever, and the reasons name the servers.
        body = {
            "detail": str(error),
            "elapsed_ms": 1e3 * error.elapsed_s,
            "arrived": {model: _as_json(answer) for model, answer in error.arrived.items()},
            "failures": error.failures,
        }
        return JSONResponse(body, status_code=503, headers={"retry-after": "1"})

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    return app


def _arrays(client: CodedClient, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    dtypes = {tensor.name: triton_to_np_dtype(tensor.dtype) for tensor in client.group.inputs}
    try:
        # An input that the group does not know keeps its own type; the client says which ones there are.
        return {name: np.asarray(value, dtypes.get(name)) for name, value in inputs.items()}
    except (TypeError, ValueError) as error:
        raise RequestError(f"the inputs are not lists of numbers of one shape: {error}") from error


def _as_json(answer: Answer) -> dict[str, Any]:
    quality = answer.quality
    return {
        "outputs": {name: array.tolist() for name, array in answer.outputs.items()},
        "source": answer.source.value,
        "latency_ms": 1e3 * answer.latency_s,
        # In %, measured when the group was built: how often a decoded answer names the class that its model would.
        "agreement": None if quality is None else quality.agreement,
    }


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("addresses", nargs="+", metavar="HOST:PORT", help="the Triton servers' gRPC endpoints")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    uvicorn.run(create_app(options.addresses), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
