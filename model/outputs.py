"""What the networks return."""

from dataclasses import dataclass

import torch


@dataclass
class ImageFeatures:
    """maps: the backbone's four feature maps, finest first; pooled: (B, C) mean of the last one."""

    maps: tuple[torch.Tensor, ...]
    pooled: torch.Tensor


@dataclass
class CoarseOutput:
    """The coarse estimate.

    verts (B, V, 3) and joints (B, J + 6, 3) in camera space (x right, y up, z away); scale (B, 1); trans (B, 3);
    pose (B, 3 J) axis-angle; betas (B, 20); betas_logscale (B, 6) or None; features of the picture for the refiner.
    """

    verts: torch.Tensor
    joints: torch.Tensor
    scale: torch.Tensor
    trans: torch.Tensor
    pose: torch.Tensor
    betas: torch.Tensor
    betas_logscale: torch.Tensor | None
    features: ImageFeatures

    @property
    def meshes(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """verts and joints by the suffix under which results name them."""
        return {"": (self.verts, self.joints)}


@dataclass
class CoarseToFineOutput(CoarseOutput):
    """The coarse estimate and the refined one: del_v (B, V, 3) in the rest pose, verts_refined and joints_refined as above."""

    del_v: torch.Tensor
    verts_refined: torch.Tensor
    joints_refined: torch.Tensor

    @property
    def meshes(self):
        return super().meshes | {"_refined": (self.verts_refined, self.joints_refined)}
