"""What a user can choose about Fisher statistics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FisherOptions(BaseModel):
    """Which Fisher information, and how it is estimated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    likelihood: Literal["gaussian", "categorical"] = Field(
        default="gaussian",
        description="The models' predictive distribution: gaussian, a normal of unit variance around the outputs, for "
        "outputs that are combined as they are (logits, values); categorical, the softmax over the last dimension of "
        "each output.",
    )
    estimate: Literal["sign_probe", "sampled", "exact"] = Field(
        default="sign_probe",
        description="sign_probe: random sign vectors, any likelihood; sampled: labels drawn from the model's own "
        "predictions, categorical only; exact: one backward pass for each output element.",
    )
    samples: int = Field(
        default=1, ge=1, description="Sign vectors or labels drawn for each point, one backward pass each."
    )
    batch_size: int = Field(
        default=16, ge=1, description="Most points handled at once; changes speed and memory, not the result."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sign vectors or labels.")

    @model_validator(mode="after")
    def _makes_sense(self) -> FisherOptions:
        if self.likelihood == "gaussian" and self.estimate == "sampled":
            raise ValueError("a gaussian likelihood has no labels to sample; choose estimate sign_probe or exact")
        if self.estimate == "exact" and self.samples != 1:
            raise ValueError("the exact estimate draws nothing; leave out samples")
        return self
