"""Training losses (paper, section 3.4): functions of predictions and labels, and their sum."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse
import torch
from torch import nn

import render
from model.outputs import Estimate, Prediction
from smal_model import SMAL
from smal_model.mesh import SparseMap, adjacency
from smal_model.priors import GaussianPrior, joint_limits
from util import distributed
from util.camera import CROP

TVERSKY_EPS = 1e-5
Reduction = Callable[[torch.Tensor], torch.Tensor]  # over a tensor's entries


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; a term of weight 0 is not computed.

    kpts, betas_prior, pose_prior, pose_limit_prior, dice: of the coarse estimate.
    kpts_refine, dice_refine, arap: of the refined one.
    alpha, beta: what false positives and false negatives count in a silhouette.
    """

    kpts: float = 10.0
    betas_prior: float = 1.0
    pose_prior: float = 1.0
    pose_limit_prior: float = 0.0
    dice: float = 0.0
    kpts_refine: float = 0.0
    dice_refine: float = 0.0
    arap: float = 0.0
    alpha: float = 0.6
    beta: float = 0.4

    @property
    def terms(self) -> dict[str, float]:
        """The terms that count, by name."""
        return {k: w for k, w in asdict(self).items() if w and k not in ("alpha", "beta")}


def _alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def keypoint_loss(
    predicted: torch.Tensor, labels: torch.Tensor, has_label=None, total: Reduction = _alone
) -> torch.Tensor:
    """Mean over all B x K x 2 entries of (visible (predicted - labelled))^2; hidden ones are 0.

    Args:
        predicted: (B, K, 2) row, column in pixels of the crop.
        labels: (B, K, 3) row, column, visible.
        has_label: (B,) bool, images that count; None: all.
        total: the sum of its argument over processes (util.distributed).
    """
    squared = (labels[..., 2:] * (predicted - labels[..., :2])).pow(2)  # (B, K, 2)
    if has_label is None:
        has_label = labels.new_ones(len(labels))
    squared = squared * has_label[:, None, None]
    entries = has_label.sum() * squared.shape[1:].numel()
    sums = total(torch.stack([squared.sum(), entries.to(squared.dtype)]))
    return sums[0] / sums[1].clamp_min(1)


def tversky_loss(
    silhouette: torch.Tensor,
    mask: torch.Tensor,
    alpha: float,
    beta: float,
    total: Reduction = _alone,
) -> torch.Tensor:
    """Tversky loss (Salehi et al., MLMI 2017) over the whole batch at once.

    1 - (TP + eps) / (TP + alpha FP + beta FN + eps).

    Args:
        silhouette, mask: (B, H, W) in [0, 1].
        alpha: weight of what is rendered outside the mask.
        beta: weight of what is missing inside it.
        total: the sum of its argument over processes (util.distributed).
    """
    tp = (silhouette * mask).sum()
    fp = (silhouette * (1 - mask)).sum()
    fn = ((1 - silhouette) * mask).sum()
    tp, fp, fn = total(torch.stack([tp, fp, fn]))
    return 1 - (tp + TVERSKY_EPS) / (tp + alpha * fp + beta * fn + TVERSKY_EPS)


def joint_limit_loss(
    pose: torch.Tensor, low: torch.Tensor, high: torch.Tensor, mean: Reduction = torch.mean
) -> torch.Tensor:
    """Mean excess over the joint limits, radians.

    Args:
        pose: (B, 3 J) axis-angle, the global rotation first.
        low, high: (3 n,) limits of joints 1...n.
        mean: of its argument's entries.
    """
    x = pose[:, 3 : 3 + low.shape[0]]  # (B, 96)
    return mean((x - high).clamp_min(0) + (low - x).clamp_min(0))


def laplacian_loss(
    refined: torch.Tensor, coarse: torch.Tensor, laplacian, mean: Reduction = torch.mean
) -> torch.Tensor:
    """Mean over vertices of |L refined - L coarse|; both (B, V, 3), coarse is not moved."""
    return mean(laplacian(refined - coarse.detach()).norm(dim=-1))


def mesh_laplacian(faces, num_verts: int) -> SparseMap:
    """Degree minus adjacency of faces (F, 3), unnormalised, as a map on (B, V, C)."""
    a = adjacency(faces, num_verts)
    return SparseMap(scipy.sparse.diags(np.asarray(a.sum(1)).ravel()) - a)


class Criterion(nn.Module):
    """The weighted terms of one stage, over the images of all processes together.

    Args:
        weights: of the terms.
        smal: gives the faces.
        shape_prior: over betas (20), or over betas and log-scales joined (26).
        pose_prior: over the pose.
        renderer: backend of `render`.
    """

    faces: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self,
        weights: LossWeights,
        smal: SMAL,
        shape_prior: GaussianPrior,
        pose_prior: GaussianPrior,
        renderer: str = "auto",
    ):
        super().__init__()
        self.weights, self.renderer = weights, renderer
        self.shape_prior, self.pose_prior = shape_prior, pose_prior
        self.register_buffer("faces", smal.faces, persistent=False)
        low, high = joint_limits()
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.laplacian = None
        if weights.arap:
            self.laplacian = mesh_laplacian(smal.faces.cpu().numpy(), smal.num_verts)

    def _silhouette(self, estimate: Estimate, batch: dict) -> torch.Tensor:
        silhouette = render.soft_silhouette(estimate.plane, self.faces, CROP, backend=self.renderer)
        counts = batch["mask_weight"]  # what is unsure or not labelled adds to no sum
        silhouette, mask = silhouette * counts, batch["mask"] * counts
        alpha, beta = self.weights.alpha, self.weights.beta
        return tversky_loss(silhouette, mask, alpha, beta, distributed.total)

    def _keypoints(self, estimate: Estimate, batch: dict) -> torch.Tensor:
        labels, known = batch["keypoints"], batch["has_keypoints"]
        return keypoint_loss(estimate.keypoints_px, labels, known, distributed.total)

    def _shape(self, out: Prediction) -> torch.Tensor:
        values = out.betas
        if self.shape_prior.mean.shape[0] > values.shape[1] and out.betas_logscale is not None:
            values = torch.cat([values, out.betas_logscale], 1)
        return self.shape_prior(values, distributed.mean)

    def forward(self, out: Prediction, batch: dict) -> dict[str, torch.Tensor]:
        """Weighted terms by name; their sum is the loss. batch: samples of a data set, collated."""
        coarse, refined, mean = out.coarse, out.finest, distributed.mean
        compute: dict[str, Callable] = {
            "kpts": lambda: self._keypoints(coarse, batch),
            "betas_prior": lambda: self._shape(out),
            "pose_prior": lambda: self.pose_prior(out.pose, mean),
            "pose_limit_prior": lambda: joint_limit_loss(out.pose, self.low, self.high, mean),
            "dice": lambda: self._silhouette(coarse, batch),
            "kpts_refine": lambda: self._keypoints(refined, batch),
            "dice_refine": lambda: self._silhouette(refined, batch),
            "arap": lambda: laplacian_loss(refined.verts, coarse.verts, self.laplacian, mean),
        }
        return {name: weight * compute[name]() for name, weight in self.weights.terms.items()}
