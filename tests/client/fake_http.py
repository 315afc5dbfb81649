"""The loopback Triton over HTTP: the same behaviour as over gRPC, on the protocol's JSON and binary data."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import web
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from tests.client.fake_triton import FakeTriton

_STATUS = {"INVALID_ARGUMENT": 400, "PERMISSION_DENIED": 403, "INTERNAL": 500, "UNAVAILABLE": 503}
_LENGTH = "Inference-Header-Content-Length"


class _Context:
    """What the servicer asks of a gRPC call."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self._request.headers.items()]

    def time_remaining(self) -> float | None:
        return None

    async def abort(self, status: Any, details: str) -> None:
        raise _Abort(_STATUS[status.name], details)


class _Abort(Exception):  # noqa: N818 - not an error of this test suite's, an answer
    pass


class HttpTriton(FakeTriton):
    """Serves some members of a group over HTTP.

    Attributes:
        body: sent as the answer to every inference request, whatever was asked.
        keeps_alive: whether connections outlive an answer.
        query: of the last inference request's URL.
    """

    body: bytes | None = None
    keeps_alive = True
    query: Mapping[str, str] = MappingProxyType({})

    async def start(self) -> None:
        app = web.Application()
        app.on_response_prepare.append(self._prepare)
        app.router.add_get("/v2", self._metadata)
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_post("/v2/repository/index", self._index)
        app.router.add_get("/v2/models/{model}/config", self._config)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        app.router.add_get("/v2/models/{model}/versions/{version}/config", self._config)
        app.router.add_post("/v2/models/{model}/versions/{version}/infer", self._infer)
        self._server = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._server.setup()
        site = web.TCPSite(self._server, "127.0.0.1", self.port, ssl_context=self.credentials)
        await site.start()
        self.port = self._server.addresses[0][1]

    async def stop(self) -> None:
        await self._server.cleanup()

    @property
    def connections(self) -> int:
        """The number of connections that are open."""
        return len(self._server.server.connections)

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if not self.keeps_alive:
            response.force_close()

    async def _metadata(self, request: web.Request) -> web.Response:
        answer = await self.ServerMetadata(None, _Context(request))
        return web.json_response({"name": answer.name, "version": answer.version})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_ready else 400)

    async def _index(self, request: web.Request) -> web.Response:
        index = await self.RepositoryIndex(None, None)
        return web.json_response([json_format.MessageToDict(model) for model in index.models])

    async def _config(self, request: web.Request) -> web.Response:
        wanted = service_pb2.ModelConfigRequest(name=request.match_info["model"])
        config = (await self.ModelConfig(wanted, None)).config
        return web.json_response(json_format.MessageToDict(config, preserving_proto_field_name=True))

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "deflate":
            body = zlib.decompress(body) if body[:1] == b"\x78" else body
        length = int(request.headers[_LENGTH])
        header = json.loads(body[:length])
        version = request.match_info.get("version", "")
        message = service_pb2.ModelInferRequest(
            model_name=request.match_info["model"], model_version=version, id=header.get("id", "")
        )
        for tensor in header["inputs"]:
            message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        message.raw_input_contents.append(body[length:])
        self.http_parameters = header.get("parameters", {})
        for name, value in self.http_parameters.items():
            setattr(message.parameters[name], _field(name, value), value)
        try:
            answer = await self.ModelInfer(message, _Context(request))
        except _Abort as abort:
            status, details = abort.args
            return web.json_response({"error": details}, status=status)
        self.query = dict(request.query)
        response = web.Response(body=self.body) if self.body is not None else _response(answer)
        accepted = request.headers.get("Accept-Encoding", "identity")
        if accepted in ("gzip", "deflate"):
            response.enable_compression(web.ContentCoding(accepted))
        return response


def _field(name: str, value: Any) -> str:
    if name == "priority":
        return "uint64_param"
    return {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]


def _response(answer: Any) -> web.Response:
    outputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(raw)},
        }
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]
    header = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
    text = json.dumps(header).encode()
    return web.Response(body=text + b"".join(answer.raw_output_contents), headers={_LENGTH: str(len(text))})
