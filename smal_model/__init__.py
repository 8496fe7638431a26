"""The animal body: SMAL layer, priors and mesh hierarchy."""

from .body_files import NUM_BETAS, BodyData, load_body
from .body_joints import BodyJoints
from .hierarchy import MeshHierarchy
from .smal import NUM_LOGSCALES, SMAL, SMALOutput

__all__ = [
    "NUM_BETAS", "NUM_LOGSCALES", "SMAL", "BodyData", "BodyJoints", "MeshHierarchy", "SMALOutput",
    "load_body",
]  # fmt: skip
