"""The client: discovery, policies, gathering and decoding; runs without torch, onnx or onnxruntime."""

from coin_export.client.answer import Answer, Answers, Source
from coin_export.client.client import CodedClient
from coin_export.client.policy import (
    AfterDelay,
    AfterGrace,
    AsSoonAsDecodable,
    AtDeadline,
    AtOnce,
    CodedTiming,
    DecodeTiming,
    Policy,
)
from coin_export.client.server import Limits
from coin_export.client.transport import TransportOptions

__all__ = [
    "AfterDelay",
    "AfterGrace",
    "Answer",
    "Answers",
    "AsSoonAsDecodable",
    "AtDeadline",
    "AtOnce",
    "CodedClient",
    "CodedTiming",
    "DecodeTiming",
    "Limits",
    "Policy",
    "Source",
    "TransportOptions",
]
