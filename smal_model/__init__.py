"""The animal body: SMAL layer, priors and mesh hierarchy."""

from .hierarchy import MeshHierarchy
from .smal import NUM_BETAS, NUM_LOGSCALES, SMAL, SMALOutput

__all__ = ["NUM_BETAS", "NUM_LOGSCALES", "SMAL", "MeshHierarchy", "SMALOutput"]
