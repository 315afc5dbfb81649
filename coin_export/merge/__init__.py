"""Merging checkpoints of any size: tensor by tensor, slice by slice, never a whole model in memory."""

from coin_export.merge.merging import MergeReport, merge

__all__ = ["MergeReport", "merge"]
