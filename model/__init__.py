"""The networks."""

from .backbone import BACKBONES, build_backbone
from .coarse import CoarseModel
from .coarse_to_fine import CoarseToFine
from .config import NetworkConfig, RefinerConfig
from .outputs import Estimate, ImageFeatures, Prediction

Networks = CoarseModel | CoarseToFine

__all__ = [
    "BACKBONES",
    "CoarseModel",
    "CoarseToFine",
    "Estimate",
    "ImageFeatures",
    "NetworkConfig",
    "Networks",
    "Prediction",
    "RefinerConfig",
    "build_backbone",
]
