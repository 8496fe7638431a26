"""The networks."""

from .coarse import BACKBONES, CoarseModel
from .coarse_to_fine import CoarseToFine
from .outputs import CoarseOutput, CoarseToFineOutput, ImageFeatures

__all__ = ["BACKBONES", "CoarseModel", "CoarseOutput", "CoarseToFine", "CoarseToFineOutput", "ImageFeatures"]
