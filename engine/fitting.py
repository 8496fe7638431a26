"""Fits the body to annotated images by optimisation, then deforms its vertices.

Three steps, each batched over the images and independent between them:
  1. orientation: keypoints (and, where there are few, the silhouette) from several headings; the best is kept per image;
  2. body: pose, shape, position and camera against keypoints and silhouette, the blur of the silhouette shrinking;
  3. vertices: offsets in the rest pose, in the smoothest modes of the mesh, under a penalty on the stretch of the edges.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

import render
from model.outputs import Estimate, ImageFeatures, Prediction
from smal_model import NUM_BETAS, NUM_LOGSCALES, SMAL
from smal_model.joints import NUM_KEYPOINTS
from smal_model.lbs import rodrigues
from smal_model.mesh import SparseMap, adjacency
from smal_model.priors import GaussianPrior, joint_limits
from util.camera import CROP, DISTANCE, FOCAL, HALF_CROP, project

FACING = (-1.20919958, 1.20919958, 1.20919958)  # axis-angle: upright, facing the camera
START_DEPTH = 1.0  # trans z of a new fit, body units


@dataclass(frozen=True)
class FitSettings:
    """Every number of a fit. Weights are of terms of about 1; sigmas in squared units of the image plane."""

    headings: int = 8  # starts about the vertical
    kept: int = 3  # headings that go on after the first round
    round_steps: tuple[int, int] = (40, 80)
    few_keypoints: int = 6  # fewer visible: the silhouette helps to choose the heading
    body_steps: int = 160
    deform_steps: int = 120

    body_size: int = 112  # side of the silhouettes, pixels
    deform_size: int = 224
    body_sigma: tuple[float, float] = (1e-3, 3e-5)  # first and last step
    deform_sigma: tuple[float, float] = (1e-4, 5e-6)
    body_rate: float = 0.05
    deform_rate: float = 0.005

    w_keypoints: float = 8.0
    keypoint_scale: float = 10.0  # pixels: squared below, linear beyond
    w_silhouette: float = 30.0
    w_outside: float = 2.0
    w_pose: float = 0.02
    w_limits: float = 3.0
    w_betas: float = 0.05
    betas_floor: float = 0.1  # added to the family's variances, which come from few animals
    w_logscale: float = 0.2
    logscale_std: float = 0.2
    w_stretch: float = 1.0
    w_overstretch: float = 10.0
    free_stretch: float = 0.5  # fraction of an edge's length beyond which stretch costs more

    modes: int = 300  # smooth modes of the mesh that offsets are made of
    stiffness: float = 0.01  # modes stiffer than this move less
    logscales: bool = True
    renderer: str = "auto"


def fit_images(
    smal: SMAL, pose_prior: GaussianPrior, batch: dict, settings: FitSettings = FitSettings(), start: Prediction | None = None
) -> Prediction:
    """Fits the body, then its vertices, to the annotations of a batch.

    Args:
        smal: the body, on the device of the batch.
        pose_prior: prior over the pose (smal_model.priors.pose_prior).
        batch: `keypoints` (B, 20, 3), `mask` and `border_mask` (B, 224, 224) of the data sets' sample; `keypoints` or `mask`
            may be missing, and an image without a visible keypoint or with an empty mask is fitted to the other.
        settings: all numbers.
        start: a network's answer to start from; None starts from several headings.

    Returns:
        A Prediction whose coarse estimate is the fitted body and whose refined one has its vertices deformed.
    """
    labels = _Labels.of(batch)
    fitter = _Fitter(smal, pose_prior, settings)
    with torch.enable_grad():
        if start is None:
            body = fitter.choose_heading(labels)
        else:
            body = _state(start)
        body = fitter.fit_body(body, labels)
        return fitter.deform(body, labels, start)


def refine_prediction(
    smal: SMAL, pose_prior: GaussianPrior, batch: dict, start: Prediction, settings: FitSettings | None = None
) -> Prediction:
    """Test-time refinement: 100 steps from a network's answer. Arguments and result as in `fit_images`."""
    return fit_images(smal, pose_prior, batch, settings or FitSettings(body_steps=40, deform_steps=60), start)


@dataclass
class _Labels:
    """What is fitted to; the distance map holds pixels to the nearest pixel of the mask or outside the photograph."""

    keypoints: Tensor  # (B, 20, 3)
    mask: Tensor  # (B, 224, 224)
    border: Tensor  # (B, 224, 224)
    distance: Tensor  # (B, 224, 224)
    masked: Tensor  # (B,) 1 where there is a mask

    @classmethod
    def of(cls, batch: dict) -> "_Labels":
        if "keypoints" not in batch and "mask" not in batch:
            raise ValueError("batch has neither keypoints nor mask: there is nothing to fit to")
        given = batch["keypoints" if "keypoints" in batch else "mask"]
        size = len(given), CROP, CROP
        mask = batch.get("mask", given.new_zeros(size))
        keypoints = batch.get("keypoints", given.new_zeros(len(given), NUM_KEYPOINTS, 3))
        border = batch.get("border_mask", given.new_ones(size)) * batch.get("mask_weight", given.new_ones(size))
        outside = ((mask < 0.5) & (border > 0)).cpu().numpy().astype(np.uint8)
        masked = (mask.sum((1, 2)) > 0).float()
        maps = [cv2.distanceTransform(o, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * float(m) for o, m in zip(outside, masked)]
        distance = torch.from_numpy(np.stack(maps)).to(mask)
        return cls(keypoints, mask, border, distance, masked)

    def rows(self, rows: Tensor) -> "_Labels":
        return _Labels(*(getattr(self, name)[rows] for name in ("keypoints", "mask", "border", "distance", "masked")))

    def at(self, size: int) -> tuple[Tensor, Tensor]:
        """(B, size, size) border mask, and mask inside it."""
        mask, border = (interpolate(x[:, None], size=(size, size), mode="area")[:, 0] for x in (self.mask, self.border))
        return border, mask * border


_State = dict[str, Tensor]  # pose (N, 3 J), betas (N, 20), trans (N, 3), log_focal (N, 1), maybe logscale (N, 6)


def _state(start: Prediction) -> _State:
    state = {"pose": start.pose, "betas": start.betas, "trans": start.trans, "log_focal": start.coarse.scale.log1p()}
    if start.betas_logscale is not None:
        state["logscale"] = start.betas_logscale
    return {name: value.detach().clone() for name, value in state.items()}


def _rows(state: _State, rows) -> _State:
    return {name: value.detach()[rows].clone() for name, value in state.items()}


class _Fitter:
    """The terms and steps of a fit, for one body."""

    def __init__(self, smal: SMAL, pose_prior: GaussianPrior, settings: FitSettings):
        self.smal, self.pose_prior, self.settings = smal, pose_prior, settings
        device = smal.template.device
        cov = smal.family_cov[:NUM_BETAS, :NUM_BETAS] + settings.betas_floor * np.eye(NUM_BETAS)
        factor = np.linalg.cholesky(np.linalg.inv(cov))
        self.shape_prior = GaussianPrior(smal.family_mean[:NUM_BETAS], factor).to(device)
        self.low, self.high = (limit.to(device) for limit in joint_limits())

    def estimate(self, state: _State, del_v: Tensor | None = None) -> Estimate:
        out = self.smal(state["betas"], state["pose"], state["trans"], del_v, state.get("logscale"))
        return Estimate(out.verts, out.joints, state["log_focal"].expm1())

    def keypoint_term(self, estimate: Estimate, labels: _Labels) -> Tensor:
        """(N,) mean over the visible keypoints: squared below `keypoint_scale`, linear beyond."""
        visible = labels.keypoints[..., 2]
        squared = (estimate.keypoints_px - labels.keypoints[..., :2]).pow(2).sum(-1)  # (N, 20)
        cost = (1 + squared / self.settings.keypoint_scale**2).sqrt() - 1
        return (visible * cost).sum(1) / visible.sum(1).clamp_min(1)

    def silhouette_term(self, estimate: Estimate, labels: _Labels, size: int, sigma: float) -> Tensor:
        """(N,) Dice loss of each image, inside the photograph."""
        border, mask = labels.at(size)
        drawn = render.soft_silhouette(estimate.plane, self.smal.faces, size, sigma, backend=self.settings.renderer) * border
        dice = 2 * (drawn * mask).sum((1, 2)) / (drawn + mask).sum((1, 2)).clamp_min(1e-6)
        return labels.masked * (1 - dice)

    def outside_term(self, estimate: Estimate, labels: _Labels) -> Tensor:
        """(N,) mean distance of the vertices from the mask, in tenths of the crop: thin parts count too."""
        xy = estimate.plane[..., :2] * estimate.plane.new_tensor([1, -1])  # (N, V, 2)
        beyond = (xy.abs() - 1).clamp_min(0).sum(-1) * HALF_CROP  # (N, V) pixels
        inside = grid_sample(labels.distance[:, None], xy[:, None], padding_mode="border", align_corners=False)
        return labels.masked * (inside[:, 0, 0] + 0 * beyond).mean(1) / (0.1 * CROP)

    def prior_terms(self, state: _State) -> Tensor:
        """(N,) priors over pose and shape, and joint limits, weighted."""
        s = self.settings
        joints = state["pose"][:, 3 : 3 + len(self.low)]
        excess = (joints - self.high).clamp_min(0) + (self.low - joints).clamp_min(0)
        total = s.w_limits * excess.mean(1)
        for weight, prior, value in ((s.w_pose, self.pose_prior, "pose"), (s.w_betas, self.shape_prior, "betas")):
            total = total + weight * ((state[value] - prior.mean) @ prior.factor).pow(2).mean(1)
        if "logscale" in state:
            total = total + s.w_logscale * (state["logscale"] / s.logscale_std).pow(2).mean(1)
        return total

    def choose_heading(self, labels: _Labels) -> _State:
        """The best of several headings for each image, fitted to keypoints or, where these are few, silhouettes."""
        s, images = self.settings, torch.arange(len(labels.mask), device=labels.mask.device)
        state, count = self.headings(labels), s.headings
        for kept, steps in zip((s.kept, 1), s.round_steps, strict=True):
            each = labels.rows(images.repeat_interleave(count))
            blind = (each.keypoints[..., 2].sum(1) < s.few_keypoints).nonzero()[:, 0]
            few = each.rows(blind)

            def loss(progress: float) -> Tensor:
                estimate = self.estimate(state)
                total = s.w_keypoints * self.keypoint_term(estimate, each) + self.prior_terms(state)
                if len(blind):
                    seen = Estimate(estimate.verts[blind], estimate.joints[blind], estimate.scale[blind])
                    term = self.silhouette_term(seen, few, s.body_size // 2, s.body_sigma[0])
                    total = total.index_add(0, blind, s.w_silhouette * term)
                return total

            _descend(list(state.values()), self.rates(state), steps, loss)
            with torch.no_grad():
                estimate = self.estimate(state)
                total = s.w_keypoints * self.keypoint_term(estimate, each) + self.prior_terms(state)
                total += s.w_silhouette * self.silhouette_term(estimate, each, s.body_size, s.deform_sigma[0])
                best = total.view(-1, count).argsort(1)[:, :kept]  # (B, kept)
            state, count = _rows(state, (best + images[:, None] * count).flatten()), kept
        return state

    @torch.no_grad()
    def headings(self, labels: _Labels) -> _State:
        """The mean body from all headings, image by image, moved and scaled onto the box of the labels."""
        s, device, batch = self.settings, labels.mask.device, len(labels.mask)
        turns = torch.arange(s.headings, device=device) * 2 * math.pi / s.headings
        pose = self.pose_prior.mean.repeat(s.headings, 1)
        facing = rodrigues(torch.tensor(FACING, device=device))
        pose[:, :3] = torch.stack([_axis_angle(rodrigues(turn * turn.new_tensor([0, 1, 0])) @ facing) for turn in turns])
        state = {
            "pose": pose.repeat(batch, 1),
            "betas": self.shape_prior.mean.repeat(batch * s.headings, 1),
            "trans": torch.tensor([0, 0, START_DEPTH], device=device).repeat(batch * s.headings, 1),
            "log_focal": torch.zeros(batch * s.headings, 1, device=device),
        }
        if s.logscales:
            state["logscale"] = torch.zeros(batch * s.headings, NUM_LOGSCALES, device=device)
        estimate = self.estimate(state)
        each = labels.rows(torch.arange(batch, device=device).repeat_interleave(s.headings))
        visible = each.keypoints[..., 2] > 0  # (N, 20)
        row, column = (torch.arange(CROP, device=device) + 0.5 for _ in range(2))
        mask = each.mask > 0.5
        pixels = torch.cat([_ends(row, mask.any(2)), _ends(column, mask.any(1))], 1)[:, [0, 2, 1, 3]].view(-1, 2, 2)
        drawn = torch.stack(
            [CROP - HALF_CROP * (estimate.plane[..., 1] + 1), HALF_CROP * (estimate.plane[..., 0] + 1)], -1
        )  # (N, V, 2)
        by_mask = pixels, torch.stack([drawn.amin(1), drawn.amax(1)], 1)
        by_keypoints = _box(each.keypoints[..., :2], visible), _box(estimate.keypoints_px, visible)
        enough = (visible.sum(1) >= s.few_keypoints)[:, None, None]
        wanted, found = (torch.where(enough, k, m) for k, m in zip(by_keypoints, by_mask, strict=True))  # (N, 2, 2)
        ratio = ((wanted[:, 1] - wanted[:, 0]).norm(dim=1) / (found[:, 1] - found[:, 0]).norm(dim=1)).nan_to_num(1)
        ratio = ratio.clamp(0.05, 20)[:, None]  # (N, 1)
        state["log_focal"] += ratio.log()
        shift = ((wanted.mean(1) - HALF_CROP) - ratio * (found.mean(1) - HALF_CROP)).nan_to_num(0)  # (N, 2) row, column
        shift = shift[:, [1, 0]] * shift.new_tensor([1, -1])  # x, y in pixels
        state["trans"][:, :2] += shift * (DISTANCE + START_DEPTH) / (FOCAL * state["log_focal"].exp())
        return state

    def rates(self, state: _State) -> list[float]:
        return [self.settings.body_rate * (2 if name == "betas" else 1) for name in state]

    def fit_body(self, state: _State, labels: _Labels) -> _State:
        """Pose, shape, position and camera, against all labels."""
        s = self.settings

        def loss(progress: float) -> Tensor:
            estimate = self.estimate(state)
            sigma = _between(*s.body_sigma, progress)
            return (
                s.w_keypoints * self.keypoint_term(estimate, labels)
                + s.w_silhouette * self.silhouette_term(estimate, labels, s.body_size, sigma)
                + s.w_outside * self.outside_term(estimate, labels)
                + self.prior_terms(state)
            )

        _descend(list(state.values()), self.rates(state), s.body_steps, loss)
        return _rows(state, slice(None))

    def deform(self, state: _State, labels: _Labels, start: Prediction | None) -> Prediction:
        """Offsets of the vertices in the rest pose, against all labels."""
        s = self.settings
        modes, stretch = _smooth_modes(self.smal, s)
        weights = modes.new_zeros(len(labels.mask), modes.shape[1], 3)

        def loss(progress: float) -> Tensor:
            del_v = modes @ weights  # (B, V, 3)
            estimate = self.estimate(state, del_v)
            squared = stretch(del_v).pow(2).sum(-1)  # (B, E)
            over = (squared - s.free_stretch**2).clamp_min(0)
            return (
                s.w_keypoints * self.keypoint_term(estimate, labels)
                + s.w_silhouette * self.silhouette_term(estimate, labels, s.deform_size, _between(*s.deform_sigma, progress))
                + s.w_outside * self.outside_term(estimate, labels)
                + s.w_stretch * squared.mean(1)
                + s.w_overstretch * over.pow(2).mean(1)
            )

        _descend([weights], [s.deform_rate], s.deform_steps, loss, uniform=True)
        with torch.no_grad():
            del_v = modes @ weights.detach()
            coarse, refined = self.estimate(state), self.estimate(state, del_v)
            features = start.features if start else ImageFeatures((), modes.new_zeros(len(del_v), 0))
            return Prediction(
                coarse, state["trans"], state["pose"], state["betas"], state.get("logscale"), features, refined, del_v
            )


def _smooth_modes(smal: SMAL, settings: FitSettings) -> tuple[Tensor, SparseMap]:
    """(V, K) modes that stretch the edges least, stiff ones scaled down; and the map from offsets to relative stretch (E)."""
    links = scipy.sparse.triu(adjacency(smal.faces.cpu().numpy(), smal.num_verts)).tocoo()
    verts = smal.template.cpu().double().numpy()
    length = np.linalg.norm(verts[links.row] - verts[links.col], axis=1)
    length = np.maximum(length, 0.2 * np.median(length))
    count = len(length)
    entries = np.concatenate([1 / length, -1 / length]), (np.tile(np.arange(count), 2), np.concatenate([links.row, links.col]))
    stretch = scipy.sparse.csr_matrix(entries, shape=(count, smal.num_verts))
    laplacian = stretch.T @ stretch
    laplacian = (laplacian / laplacian.diagonal().mean()).tocsc()
    first = np.random.default_rng(0).standard_normal(smal.num_verts)
    values, vectors = scipy.sparse.linalg.eigsh(laplacian, k=settings.modes, sigma=-1e-4, v0=first)
    modes = vectors * math.sqrt(smal.num_verts) / (1 + values / settings.stiffness)
    device = smal.template.device
    return torch.tensor(modes, dtype=torch.float32, device=device), SparseMap(stretch).to(device)


def _descend(
    params: list[Tensor], rates: list[float], steps: int, loss: Callable[[float], Tensor], uniform: bool = False
) -> None:
    """Adam with rates falling to a tenth along half a cosine; `loss(progress)` gives one value per image.

    uniform: one second moment for all numbers of an image (Nicolet et al., SIGGRAPH Asia 2021), so that what hardly
    changes the loss hardly moves.
    """
    for param in params:
        param.requires_grad_()
    first, second = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    for step in range(steps):
        progress = step / max(steps - 1, 1)
        fade = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        grads = torch.autograd.grad(loss(progress).sum(), params)
        with torch.no_grad():
            for param, rate, grad, m, v in zip(params, rates, grads, first, second, strict=True):
                m.lerp_(grad, 0.1)
                v.lerp_(grad.pow(2), 0.05)
                spread = v.amax((1, 2), keepdim=True) if uniform else v
                spread = (spread / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12
                param -= rate * fade / (1 - 0.9 ** (step + 1)) * m / spread


def _between(first: float, last: float, progress: float) -> float:
    return first * (last / first) ** progress


def _ends(values: Tensor, chosen: Tensor) -> Tensor:
    """(N, 2) least and greatest of values (K,) where chosen (N, K)."""
    low = torch.where(chosen, values, math.inf).amin(1)
    return torch.stack([low, torch.where(chosen, values, -math.inf).amax(1)], 1)


def _box(points: Tensor, chosen: Tensor) -> Tensor:
    """(N, 2, 2) least and greatest of points (N, K, 2) where chosen (N, K)."""
    low = torch.where(chosen[..., None], points, math.inf).amin(1)
    return torch.stack([low, torch.where(chosen[..., None], points, -math.inf).amax(1)], 1)


def _axis_angle(rotation: Tensor) -> Tensor:
    """(3,) of a rotation matrix (3, 3)."""
    return torch.from_numpy(cv2.Rodrigues(rotation.double().cpu().numpy())[0][:, 0]).to(rotation)
