"""Training losses (paper, section 3.4). Functions of predictions and labels; `Criterion` weights and names them."""

import numpy as np
import scipy.sparse
import torch
from torch import nn

import render
from smal_model.hierarchy import SparseMap, adjacency
from smal_model.priors import GaussianPrior, joint_limits

from .camera import CROP, keypoints_row_col, project

TVERSKY_EPS = 1e-5


def keypoint_loss(predicted: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """predicted (B, K, 2) and labelled (B, K, 3): row, column (, visible) in pixels of the 224 crop.

    Mean over all B x K x 2 entries of (visible (predicted - labelled))^2: hidden keypoints count as zero in the mean.
    """
    return (labelled[..., 2:] * (predicted - labelled[..., :2])).pow(2).mean()


def tversky_loss(silhouette: torch.Tensor, mask: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Tversky loss (Salehi et al., MLMI 2017) over the whole batch at once; both (B, H, W) in [0, 1].

    1 - (TP + eps) / (TP + alpha FP + beta FN + eps), with alpha on what is rendered outside the mask.
    """
    tp = (silhouette * mask).sum()
    fp = (silhouette * (1 - mask)).sum()
    fn = ((1 - silhouette) * mask).sum()
    return 1 - (tp + TVERSKY_EPS) / (tp + alpha * fp + beta * fn + TVERSKY_EPS)


def joint_limit_loss(pose: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Mean excess over the limits, radians. pose (B, 3 J) with the global rotation first; low, high (3 n,) of joints 1...n."""
    x = pose[:, 3 : 3 + low.shape[0]]  # (B, 96)
    return ((x - high).clamp_min(0) + (low - x).clamp_min(0)).mean()


def laplacian_loss(refined: torch.Tensor, coarse: torch.Tensor, laplacian) -> torch.Tensor:
    """Mean over vertices of |L refined - L coarse|; both (B, V, 3), the coarse one is not moved by it."""
    return laplacian(refined - coarse.detach()).norm(dim=-1).mean()


def mesh_laplacian(faces, num_verts: int) -> SparseMap:
    """Degree minus adjacency, unnormalised, as a map on (B, V, C)."""
    a = adjacency(faces, num_verts)
    return SparseMap(scipy.sparse.diags(np.asarray(a.sum(1)).ravel()) - a)


class Criterion(nn.Module):
    """The weighted terms of one stage.

    weights: term name to weight; a term of weight 0 is not computed. Names: kpts, betas_prior, pose_prior, dice,
    pose_limit_prior act on the coarse estimate; kpts_refine, dice_refine, arap on the refined one.
    smal: gives faces. shape_prior over betas (20), or over betas and log-scales joined (26). renderer: backend of `render`.
    """

    def __init__(
        self,
        weights: dict[str, float],
        smal,
        shape_prior: GaussianPrior,
        pose_prior: GaussianPrior,
        alpha: float = 0.6,
        beta: float = 0.4,
        renderer: str = "auto",
    ):
        super().__init__()
        self.weights = {name: w for name, w in weights.items() if w}
        self.shape_prior, self.pose_prior = shape_prior, pose_prior
        self.alpha, self.beta, self.renderer = alpha, beta, renderer
        self.register_buffer("faces", smal.faces, persistent=False)
        low, high = joint_limits()
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.laplacian = mesh_laplacian(smal.faces.cpu().numpy(), smal.num_verts) if "arap" in self.weights else None

    def _silhouette(self, verts, scale, mask):
        plane = project(verts, scale)
        silhouette = render.soft_silhouette(plane, self.faces, CROP, backend=self.renderer)  # (B, 224, 224)
        return tversky_loss(silhouette, mask, self.alpha, self.beta)

    def _term(self, name, output, batch):
        if name == "kpts":
            return keypoint_loss(keypoints_row_col(output.joints, output.scale), batch["keypoints"])
        if name == "kpts_refine":
            return keypoint_loss(keypoints_row_col(output.joints_refined, output.scale), batch["keypoints"])
        if name == "betas_prior":
            shape = [output.betas, output.betas_logscale]
            joined = self.shape_prior.mean.shape[0] > output.betas.shape[1]
            return self.shape_prior(torch.cat(shape, 1) if joined else output.betas)
        if name == "pose_prior":
            return self.pose_prior(output.pose)
        if name == "pose_limit_prior":
            return joint_limit_loss(output.pose, self.low, self.high)
        if name == "dice":
            return self._silhouette(output.verts, output.scale, batch["mask"])
        if name == "dice_refine":
            return self._silhouette(output.verts_refined, output.scale, batch["mask"])
        if name == "arap":
            return laplacian_loss(output.verts_refined, output.verts, self.laplacian)
        raise ValueError(f"unknown loss term {name!r}")

    def forward(self, output, batch) -> dict[str, torch.Tensor]:
        """Weighted terms by name; their sum is the loss. output: CoarseOutput or CoarseToFineOutput; batch: a sample, batched."""
        return {name: weight * self._term(name, output, batch) for name, weight in self.weights.items()}
