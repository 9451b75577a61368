"""Grafts: flags put into a model that exists, with its function kept where that is possible."""

from flagformer.interop.graft.build import check_graft, graft
from flagformer.interop.graft.report import Graft

__all__ = ["Graft", "check_graft", "graft"]
