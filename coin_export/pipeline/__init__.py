"""The pipeline: from a recipe, or models in memory, to a model repository that has been checked."""

from coin_export.pipeline.build import BuildReport, build, build_group
from coin_export.pipeline.evaluation import evaluate_repository
from coin_export.pipeline.loading import Labelled, load
from coin_export.pipeline.plan import BuildPlan, plan

__all__ = [
    "BuildPlan",
    "BuildReport",
    "Labelled",
    "build",
    "build_group",
    "evaluate_repository",
    "load",
    "plan",
]
