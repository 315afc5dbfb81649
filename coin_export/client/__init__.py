"""The client: discovery, policies, gathering and decoding; runs without torch, onnx or onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coin_export.client.answer import Answer, Answers, OutputTensor, Response, Source
from coin_export.client.budget import Budget
from coin_export.client.client import CodedClient
from coin_export.client.observer import (
    CallEnd,
    CallInfo,
    CallOutcome,
    Observer,
    RequestEnd,
    RequestInfo,
    RequestOutcome,
)
from coin_export.client.policy import (
    AfterDelay,
    AfterGrace,
    AfterQuantile,
    AsSoonAsDecodable,
    AtDeadline,
    AtOnce,
    CodedTiming,
    DecodeTiming,
    OnlyWhenDown,
    Policy,
)
from coin_export.client.routing import BetterOfTwo, FewestOutstanding, Routing
from coin_export.client.server import Limits
from coin_export.client.sync import SyncCodedClient
from coin_export.client.transport import RequestOptions, TransportOptions

if TYPE_CHECKING:
    from coin_export.client.transport_http import HttpTransport

__all__ = [
    "AfterDelay",
    "AfterGrace",
    "AfterQuantile",
    "Answer",
    "Answers",
    "AsSoonAsDecodable",
    "AtDeadline",
    "AtOnce",
    "BetterOfTwo",
    "Budget",
    "CallEnd",
    "CallInfo",
    "CallOutcome",
    "CodedClient",
    "CodedTiming",
    "DecodeTiming",
    "FewestOutstanding",
    "HttpTransport",
    "Limits",
    "Observer",
    "OnlyWhenDown",
    "OutputTensor",
    "Policy",
    "RequestEnd",
    "RequestInfo",
    "RequestOptions",
    "RequestOutcome",
    "Response",
    "Routing",
    "Source",
    "SyncCodedClient",
    "TransportOptions",
]


def __getattr__(name: str) -> Any:
    if name == "HttpTransport":  # brings aiohttp, which gRPC does without
        from coin_export.client.transport_http import HttpTransport

        return HttpTransport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
