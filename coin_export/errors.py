"""Every error that coin_export raises on purpose.

::

    CoinExportError
    ├── UserError (ValueError)        what was asked for cannot be; the message says what to change
    │   ├── RecipeError               a key of the build recipe
    │   ├── CodeError                 coefficients that are no usable code, or a set that cannot be decoded
    │   ├── ModelError                a factory, a checkpoint, a forward pass
    │   │   └── ArchitectureError     models that cannot be combined tensor by tensor
    │   ├── CalibrationError          calibration inputs
    │   ├── RepositoryError           a model repository: its place, its files, its configuration
    │   ├── ManifestError             a group's description of itself
    │   ├── RequestError              an inference request
    │   └── MissingDependencyError    an optional part that is not installed
    ├── BuildError                    the build went wrong on valid input
    │   ├── NonFiniteError            NaN or infinity in weights, statistics or outputs
    │   ├── ExportError               ONNX export failed or is not what Triton accepts
    │       └── ExportMismatchError   ONNX Runtime and torch disagree about an output
    ├── ServeError                    the embedded server
    │   ├── TritonNotFoundError       no tritonserver for this platform
    │   ├── PortInUseError
    │   └── ServerStartError          the server ended, or did not become ready
    └── ClientError                   talking to servers
        ├── DiscoveryError            the servers do not serve one whole, consistent group
        ├── TransportError            one call to one server
        └── UndecodableError          too few answers, too late; carries those that did arrive

Each message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any


class CoinExportError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserError(CoinExportError, ValueError):
    """What was asked for cannot be done; the message says what to change."""


class RecipeError(UserError):
    """A key of the build recipe is unknown, missing, of the wrong type or out of range."""


class CodeError(UserError):
    """Coefficients that do not form a usable code, or answers from which nothing can be decoded."""


class ModelError(UserError):
    """A model factory, checkpoint or forward pass is unusable."""


class ArchitectureError(ModelError):
    """The originals differ in tensor names, shapes or dtypes and cannot be combined."""


class CalibrationError(UserError):
    """Calibration inputs are empty, of the wrong shape or dtype, or cannot be read."""


class RepositoryError(UserError):
    """A model repository cannot be read, written or is not valid."""


class ManifestError(UserError):
    """A group's description of itself is missing, malformed or of an unknown schema version."""


class RequestError(UserError):
    """An inference request has a wrong input name, dtype or shape."""


class MissingDependencyError(UserError):
    """An optional part of the package is needed and not installed."""


class BuildError(CoinExportError):
    """The build failed although its input was valid."""


class NonFiniteError(BuildError):
    """NaN or infinity appeared in weights, statistics or outputs."""


class ExportError(BuildError):
    """The ONNX export failed, or its result is not what Triton accepts."""


class ExportMismatchError(ExportError):
    """ONNX Runtime and torch disagree about an output."""


class ServeError(CoinExportError):
    """The embedded server could not do what was asked."""


class TritonNotFoundError(ServeError):
    """No ``tritonserver`` binary is available on this platform."""


class PortInUseError(ServeError):
    """A requested port is taken."""


class ServerStartError(ServeError):
    """The server ended, or did not become ready in time."""


class ClientError(CoinExportError):
    """Talking to the servers failed."""


class DiscoveryError(ClientError):
    """The servers do not serve one whole, consistent group."""


class TransportError(ClientError):
    """One call to one server failed.

    Attributes:
        address: the server, as ``host:port``.
    """

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(message)
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        # By itself pickle hands over the message only.
        return partial(type(self), address=self.address), self.args, vars(self)


class UndecodableError(ClientError):
    """Fewer answers arrived by the deadline than decoding needs.

    Attributes:
        arrived: the answers that did arrive, by model name.
        failures: why each missing model is missing, by model name.
        elapsed_s: seconds between the call and the moment it was given up.
    """

    def __init__(
        self, message: str, *, arrived: Mapping[str, Any], failures: Mapping[str, str], elapsed_s: float
    ) -> None:
        super().__init__(message)
        self.arrived = dict(arrived)
        self.failures = dict(failures)
        self.elapsed_s = elapsed_s

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), arrived=self.arrived, failures=self.failures, elapsed_s=self.elapsed_s)
        return make, self.args, vars(self)
