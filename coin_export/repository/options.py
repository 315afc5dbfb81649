"""What a user may choose about how Triton serves the models of a group."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RepositoryOptions(BaseModel):
    """Serving settings, the same for every model of a group.

    Dynamic batching is on and waits for nobody: a request that finds the model idle runs at once, and those that
    queued up behind a busy one run together, so a queue empties sooner and the tail gets shorter.

    There is no queue policy unless one is asked for. Triton drops requests that have waited too long only with one,
    but in Triton 24.10 any policy makes its batcher miss wake-ups: up to a few in a hundred requests then wait
    500 ms for nothing, also on an idle server (`scripts/probe_queue_policy.py` shows it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(
        default=64, ge=0, description="Points that a model takes at once; 0: any number, and no dynamic batching."
    )
    intra_op_threads: int = Field(
        default=1, ge=0, description="Threads within one run of ONNX Runtime; 0 leaves it to ONNX Runtime."
    )
    instance_count: int = Field(default=1, ge=1, description="Copies of each model in one server.")
    dynamic_batching: bool = Field(default=True, description="Run requests that have queued up together, in one batch.")
    max_queue_delay_us: int = Field(
        default=0, ge=0, description="Microseconds that a request may be held back in wait of others to join it."
    )
    queue_timeout_us: int = Field(
        default=0,
        ge=0,
        description="Microseconds after which a queued request is refused; a request's own timeout can only shorten "
        "this, and counts for nothing where this is 0. Sets a queue policy; see above for what that costs.",
    )
    max_queue_size: int = Field(
        default=0, ge=0, description="Requests that may wait for a model; 0: any number. Sets a queue policy too."
    )

    @model_validator(mode="after")
    def _queue_needs_batching(self) -> RepositoryOptions:
        queued = {"max_queue_delay_us", "queue_timeout_us", "max_queue_size"} & self.model_fields_set
        if queued and not (self.dynamic_batching and self.max_batch_size):
            raise ValueError(
                f"{', '.join(sorted(queued))}: Triton has a queue policy with dynamic batching only; "
                "set dynamic_batching and a max_batch_size above 0"
            )
        return self
