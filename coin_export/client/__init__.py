"""The client: discovery, policies, gathering and decoding; runs without torch, onnx or onnxruntime."""

from coin_export.client.answer import Answer, Answers, OutputTensor, Response, Source
from coin_export.client.budget import Budget
from coin_export.client.client import CodedClient
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
from coin_export.client.server import Limits
from coin_export.client.sync import SyncCodedClient
from coin_export.client.transport import RequestOptions, TransportOptions

__all__ = [
    "AfterDelay",
    "AfterGrace",
    "AfterQuantile",
    "Answer",
    "Answers",
    "AsSoonAsDecodable",
    "AtDeadline",
    "AtOnce",
    "Budget",
    "CodedClient",
    "CodedTiming",
    "DecodeTiming",
    "Limits",
    "OnlyWhenDown",
    "OutputTensor",
    "Policy",
    "RequestOptions",
    "Response",
    "Source",
    "SyncCodedClient",
    "TransportOptions",
]
