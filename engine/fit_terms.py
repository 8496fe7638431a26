"""What a fit minimises: settings, labels and terms, one value an image."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

import render
from model.outputs import Estimate, Prediction
from smal_model import NUM_BETAS, SMAL
from smal_model.joints import NUM_KEYPOINTS
from smal_model.priors import GaussianPrior, joint_limits
from util.camera import CROP, HALF_CROP

State = dict[str, Tensor]  # pose (N, 3 J), betas (N, 20), trans (N, 3), log_focal (N, 1), logscale


@dataclass(frozen=True)
class FitSettings:
    """Every number of a fit. Sigmas are in squared units of the image plane."""

    headings: int = 8  # starts about the vertical
    kept: int = 3  # headings that go on after the first round
    round_steps: tuple[int, int] = (40, 80)
    few_keypoints: int = 6  # visible; with fewer the silhouette helps to choose the heading
    body_steps: int = 160
    deform_steps: int = 180

    body_size: int = 112  # side of the silhouettes, pixels
    deform_size: int = 224
    body_sigma: tuple[float, float] = (1e-3, 3e-5)  # first and last step
    deform_sigma: tuple[float, float] = (1e-4, 5e-6)
    body_rate: float = 0.05
    deform_rate: float = 0.005

    w_keypoints: float = 8.0
    w_keypoints_deform: float = 2.0  # the body holds them already
    keypoint_scale: float = 10.0  # pixels: squared below, linear beyond
    w_silhouette: float = 30.0
    w_outside: float = 2.0
    w_pose: float = 0.02
    w_limits: float = 3.0
    w_betas: float = 0.1
    betas_floor: float = 0.1  # added to the family's variances, which come from few animals
    w_logscale: float = 0.2
    logscale_std: float = 0.2
    w_start: float = 1.0  # of the departure from a network's answer
    w_start_alone: float = 1000.0  # the same with few keypoints: a mask says little of the pose
    w_start_keypoints: float = 5.0  # of the answer's keypoints, where few are labelled
    start_std: float = 0.3
    w_stretch: float = 1.0
    w_overstretch: float = 10.0
    free_stretch: float = 0.5  # fraction of an edge's length beyond which stretch costs more
    w_thin: float = 2000.0
    free_thickness: float = 0.7  # fraction of a thin part's thickness below which it costs more

    modes: int = 300  # smooth modes of the mesh that offsets are made of
    stiffness: float = 0.01  # modes stiffer than this move less
    logscales: bool = True  # of a new fit
    renderer: str = "auto"


@dataclass
class Labels:
    """What is fitted to, for each image.

    keypoints: (B, 20, 3).
    mask: (B, 224, 224), 0 where it is not known.
    border: (B, 224, 224), 1 where the mask counts.
    distance: (B, 224, 224) pixels to the mask or to where it does not count, 0 without a mask.
    masked: (B,) 1 where there is a mask. known: (B,) 1 where there is anything to fit to.
    """

    keypoints: Tensor
    mask: Tensor
    border: Tensor
    distance: Tensor
    masked: Tensor
    known: Tensor

    @classmethod
    def of(cls, batch: dict) -> "Labels":
        """The labels of samples of a data set, collated; keypoints or masks may be missing."""
        if "keypoints" not in batch and "mask" not in batch:
            raise ValueError("batch has neither keypoints nor mask: there is nothing to fit to")
        given = batch["keypoints" if "keypoints" in batch else "mask"]
        keypoints = batch.get("keypoints", given.new_zeros(len(given), NUM_KEYPOINTS, 3))
        size = len(given), CROP, CROP
        border = batch.get("border_mask", given.new_ones(size))
        border = border * batch.get("mask_weight", given.new_ones(size))
        mask = batch.get("mask", given.new_zeros(size)) * border
        masked = (mask.sum((1, 2)) > 0).float()  # (B,)
        outside = ((mask < 0.5) & (border > 0)).cpu().numpy().astype(np.uint8)
        maps = [cv2.distanceTransform(image, cv2.DIST_L2, 5) for image in outside]
        distance = torch.from_numpy(np.stack(maps)).to(mask)
        distance = torch.where(masked[:, None, None] > 0, distance, 0)  # far from no mask
        known = ((keypoints[..., 2] > 0).any(1) | (masked > 0)).float()
        return cls(keypoints, mask, border, distance, masked, known)

    def rows(self, rows: Tensor) -> "Labels":
        """The labels of some images."""
        return Labels(**{name: value[rows] for name, value in vars(self).items()})

    def at(self, size: int) -> tuple[Tensor, Tensor]:
        """(B, size, size) mask and border."""
        shape = (size, size)
        mask, border = (
            interpolate(x[:, None], shape, mode="area")[:, 0] for x in (self.mask, self.border)
        )
        return mask, border


class Terms:
    """The terms of a fit, for one body; each gives (N,)."""

    def __init__(self, smal: SMAL, pose_prior: GaussianPrior, settings: FitSettings):
        self.smal, self.pose_prior, self.settings = smal, pose_prior, settings
        device = smal.template.device
        cov = smal.family_cov[:NUM_BETAS, :NUM_BETAS] + settings.betas_floor * np.eye(NUM_BETAS)
        factor = np.linalg.cholesky(np.linalg.inv(cov))
        self.shape_prior = GaussianPrior(smal.family_mean[:NUM_BETAS], factor).to(device)
        self.low, self.high = (limit.to(device) for limit in joint_limits())

    def estimate(self, state: State, del_v: Tensor | None = None) -> Estimate:
        """The posed body and its camera."""
        logscale = state.get("logscale")
        out = self.smal(state["betas"], state["pose"], state["trans"], del_v, logscale)
        return Estimate(out.verts, out.joints, state["log_focal"].expm1())

    def keypoints(self, estimate: Estimate, labels: Labels) -> Tensor:
        """Mean over the visible keypoints: squared below `keypoint_scale`, linear beyond."""
        visible = labels.keypoints[..., 2]  # (N, 20)
        cost = self._robust(estimate.keypoints_px - labels.keypoints[..., :2])
        return (visible * cost).sum(1) / visible.sum(1).clamp_min(1)

    def silhouette(self, estimate: Estimate, labels: Labels, size: int, sigma: float) -> Tensor:
        """Dice loss of each image, where its mask counts."""
        mask, border = labels.at(size)
        drawn = border * render.soft_silhouette(
            estimate.plane, self.smal.faces, size, sigma, backend=self.settings.renderer
        )
        dice = 2 * (drawn * mask).sum((1, 2)) / (drawn + mask).sum((1, 2)).clamp_min(1e-6)
        return labels.masked * (1 - dice)

    def outside(self, estimate: Estimate, labels: Labels) -> Tensor:
        """Mean distance of the vertices from the mask, tenths of the crop: thin parts count too."""
        xy = estimate.plane[..., :2] * estimate.plane.new_tensor([1, -1])  # (N, V, 2)
        return labels.masked * _at(labels.distance, xy).mean(1) / (0.1 * CROP)

    def priors(self, state: State) -> Tensor:
        """Priors over pose, shape and log-scales, and joint limits, weighted."""
        s = self.settings
        joints = state["pose"][:, 3 : 3 + len(self.low)]  # (N, 96)
        excess = (joints - self.high).clamp_min(0) + (self.low - joints).clamp_min(0)
        total = s.w_limits * excess.mean(1)
        total = total + s.w_pose * _whitened(self.pose_prior, state["pose"])
        total = total + s.w_betas * _whitened(self.shape_prior, state["betas"])
        if "logscale" in state:
            logscale = state["logscale"] / s.logscale_std
            total = total + s.w_logscale * logscale.pow(2).mean(1)
        return total

    def departure(self, state: State, labels: Labels, start: Prediction) -> Tensor:
        """Of pose and shape from a network's answer, weighted."""
        s = self.settings
        few = labels.keypoints[..., 2].sum(1) < s.few_keypoints  # (N,)
        pose = (state["pose"] - start.body.pose.detach()) / s.start_std
        betas = (state["betas"] - start.body.betas.detach()) / s.start_std
        weight = torch.where(few, s.w_start_alone, s.w_start)
        return weight * (pose.pow(2).mean(1) + betas.pow(2).mean(1))

    def start_keypoints(self, estimate: Estimate, labels: Labels, start: Prediction) -> Tensor:
        """Distance from the keypoints of a network's answer, where few are labelled, weighted.

        Those of its coarse mesh: they follow the heat maps most. The further one lies outside the
        mask, the less it counts: it cannot be right.
        """
        few = labels.keypoints[..., 2].sum(1) < self.settings.few_keypoints  # (N,)
        answer = start.coarse.keypoints_px.detach()  # (N, 20, 2)
        outside = _at(labels.distance, answer.flip(-1) / HALF_CROP - 1)  # (N, 20), pixels
        likely = (-outside / self.settings.keypoint_scale).exp()
        cost = (likely * self._robust(estimate.keypoints_px - answer)).mean(1)
        return self.settings.w_start_keypoints * few * cost

    def _robust(self, offset: Tensor) -> Tensor:
        """(N, K) of offsets in pixels (N, K, 2): squared below a scale, linear beyond."""
        return (1 + offset.pow(2).sum(-1) / self.settings.keypoint_scale**2).sqrt() - 1


def _whitened(prior: GaussianPrior, x: Tensor) -> Tensor:
    """(N,) the prior of each row."""
    return ((x - prior.mean) @ prior.factor).pow(2).mean(1)


def _at(maps: Tensor, xy: Tensor) -> Tensor:
    """(N, K) values of maps (N, H, W) at xy (N, K, 2), right and down, in [-1, 1]."""
    xy = xy.nan_to_num()  # of which the gradient would end the process on a CPU
    found = grid_sample(maps[:, None], xy[:, None], padding_mode="border", align_corners=False)
    return found[:, 0, 0]
