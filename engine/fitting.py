"""Fits the body to annotated images by optimisation, then deforms its vertices.

Three steps, each batched over the images, which do not touch each other:
  1. heading: keypoints (silhouettes where these are few) from several headings, the best is kept;
  2. body: pose, shape, position and camera, while the blur of the silhouette shrinks;
  3. vertices: offsets in the rest pose, made of the mesh's smoothest modes, stretch of the edges
     and thinner legs, ears and tails penalised.
"""

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import interpolate

from model.outputs import Estimate, ImageFeatures, Prediction
from smal_model import NUM_BETAS, NUM_LOGSCALES, SMAL
from smal_model.lbs import rodrigues
from smal_model.mesh import SparseMap, adjacency, vertex_normals
from smal_model.priors import GaussianPrior
from util.camera import CROP, DISTANCE, FOCAL, HALF_CROP, to_pixels

from .fit_terms import FitSettings, Labels, State, Terms

FIT = FitSettings()
# Test-time refinement: 100 steps, stiffer than a new fit and near the network's answer.
REFINEMENT = FitSettings(body_steps=40, deform_steps=60, w_stretch=10.0, w_start=20.0)
FACING = (-1.20919958, 1.20919958, 1.20919958)  # axis-angle: upright, facing the camera
START_DEPTH = 1.0  # trans z of a new fit, body units
NEIGHBOURS = 200  # of a vertex, among which the other side of a thin part is looked for
FADE = 0.1  # last over first learning rate


def fit_images(
    smal: SMAL,
    pose_prior: GaussianPrior,
    batch: dict,
    settings: FitSettings = FIT,
    start: Prediction | None = None,
) -> Prediction:
    """Fits the body, then its vertices, to the annotations of a batch.

    Args:
        smal: the body, on the device of the batch.
        pose_prior: prior over the pose (smal_model.priors.pose_prior), on that device.
        batch: samples of a data set, collated: `keypoints` (B, 20, 3), `mask`, `border_mask` and
            `mask_weight` (B, 224, 224); keypoints or mask may be missing or empty.
        settings: all numbers.
        start: a network's answer to start from, but for its offsets of the vertices; None: several
            headings.

    Returns:
        A Prediction: coarse is the fitted body, refined has its vertices deformed. With a start, an
        image without any label keeps the network's refined mesh, and its body as coarse.

    Raises:
        ValueError: the batch has neither keypoints nor masks.
    """
    labels, terms = Labels.of(batch), Terms(smal, pose_prior, settings)
    with torch.enable_grad():
        state = _choose_heading(terms, labels) if start is None else _state(start)
        state = _fit_body(terms, state, labels, start)
        return _deform(terms, state, labels, start)


def with_outlines(batch: dict, out: Prediction) -> dict:
    """The batch, with the outline that the network sees as the mask of images that have none.

    Where it sees nothing the image stays without one.
    """
    if out.outline is None:
        return batch
    seen = interpolate(out.outline[:, None], (CROP, CROP), mode="bilinear")[:, 0] > 0
    known = batch["has_mask"][:, None, None]
    mask = torch.where(known, batch["mask"], seen.to(batch["mask"].dtype))
    weight = torch.where(known, batch["mask_weight"], 1)
    has_mask = batch["has_mask"] | seen.flatten(1).any(1)
    return batch | {"mask": mask, "mask_weight": weight, "has_mask": has_mask}


def _state(start: Prediction) -> State:
    body = start.body
    state = {"pose": body.pose, "betas": body.betas, "trans": body.trans}
    state["log_focal"] = start.coarse.scale.clamp_min(-0.95).log1p()
    if start.betas_logscale is not None:
        state["logscale"] = start.betas_logscale
    return {name: value.detach().clone() for name, value in state.items()}


def _choose_heading(terms: Terms, labels: Labels) -> State:
    """The best of several headings for each image."""
    s, device = terms.settings, labels.mask.device
    images = torch.arange(len(labels.mask), device=device)
    state, count = _headings(terms, labels), s.headings
    for kept, steps in zip((s.kept, 1), s.round_steps, strict=True):
        each = labels.rows(images.repeat_interleave(count))
        cost = _fit_heading(terms, state, each, steps)
        best = cost.view(-1, count).argsort(1)[:, :kept]  # (B, kept)
        rows = (best + images[:, None] * count).flatten()
        state, count = {name: value.detach()[rows] for name, value in state.items()}, kept
    return state


def _fit_heading(terms: Terms, state: State, labels: Labels, steps: int) -> Tensor:
    """One round of all headings; (N,) how badly each fits, silhouette included."""
    s = terms.settings
    few = (labels.keypoints[..., 2].sum(1) < s.few_keypoints).nonzero()[:, 0]
    labels_few = labels.rows(few)

    def loss(_: float) -> Tensor:
        estimate = terms.estimate(state)
        total = s.w_keypoints * terms.keypoints(estimate, labels) + terms.priors(state)
        if len(few):
            seen = Estimate(estimate.verts[few], estimate.joints[few], estimate.scale[few])
            term = terms.silhouette(seen, labels_few, s.body_size // 2, s.body_sigma[0])
            total = total.index_add(0, few, s.w_silhouette * term)
        return total

    _descend(list(state.values()), _rates(state, s), steps, loss)
    with torch.no_grad():
        estimate = terms.estimate(state)
        cost = s.w_keypoints * terms.keypoints(estimate, labels) + terms.priors(state)
        sigma = s.deform_sigma[0]
        return cost + s.w_silhouette * terms.silhouette(estimate, labels, s.body_size, sigma)


@torch.no_grad()
def _headings(terms: Terms, labels: Labels) -> State:
    """The mean body in all headings, image by image, moved and scaled onto the labels' box."""
    s, device, batch = terms.settings, labels.mask.device, len(labels.mask)
    count = batch * s.headings
    facing = rodrigues(torch.tensor(FACING, device=device))
    turns = torch.zeros(s.headings, 3, device=device)
    turns[:, 1] = torch.arange(s.headings, device=device) * (2 * math.pi / s.headings)
    pose = terms.pose_prior.mean.repeat(s.headings, 1)
    matrices = (rodrigues(turns) @ facing).double().cpu().numpy()
    rotations = np.stack([cv2.Rodrigues(matrix)[0][:, 0] for matrix in matrices])
    pose[:, :3] = torch.from_numpy(rotations)
    state = {
        "pose": pose.repeat(batch, 1),
        "betas": terms.shape_prior.mean.repeat(count, 1),
        "trans": torch.tensor([0.0, 0.0, START_DEPTH], device=device).repeat(count, 1),
        "log_focal": torch.zeros(count, 1, device=device),
    }
    if s.logscales:
        state["logscale"] = torch.zeros(count, NUM_LOGSCALES, device=device)

    estimate = terms.estimate(state)
    each = labels.rows(torch.arange(batch, device=device).repeat_interleave(s.headings))
    visible = each.keypoints[..., 2:] > 0  # (N, 20, 1)
    centres = (torch.arange(CROP, device=device) + 0.5)[:, None].expand(-1, 2)
    covered = torch.stack([(each.mask > 0.5).any(2), (each.mask > 0.5).any(1)], -1)  # (N, 224, 2)
    drawn = to_pixels(estimate.plane)  # (N, V, 2)
    by_mask = _box(centres, covered), _box(drawn, torch.ones_like(drawn, dtype=torch.bool))
    by_keypoints = _box(each.keypoints[..., :2], visible), _box(estimate.keypoints_px, visible)
    enough = (visible.sum(1) >= s.few_keypoints)[..., None] | (each.masked == 0)[:, None, None]
    wanted, found = (torch.where(enough, k, m) for k, m in zip(by_keypoints, by_mask, strict=True))

    sides = [(box[:, 1] - box[:, 0]).norm(dim=1, keepdim=True) for box in (wanted, found)]
    ratio = (sides[0] / sides[1]).nan_to_num(1).clamp(0.05, 20)  # (N, 1)
    state["log_focal"] += ratio.log()
    shift = (wanted.mean(1) - HALF_CROP) - ratio * (found.mean(1) - HALF_CROP)  # row, column
    shift = shift.nan_to_num(0).flip(1) * shift.new_tensor([1, -1])  # x, y, pixels
    state["trans"][:, :2] += shift * (DISTANCE + START_DEPTH) / (FOCAL * state["log_focal"].exp())
    return state


def _fit_body(terms: Terms, state: State, labels: Labels, start: Prediction | None) -> State:
    """Pose, shape, position and camera, to all labels."""
    s = terms.settings
    *_, across, struts = _prepared(terms.smal, s)
    directions = terms.smal.shapedirs[:NUM_BETAS]

    def loss(progress: float) -> Tensor:
        estimate = terms.estimate(state)
        sigma = _between(*s.body_sigma, progress)
        shaped = (state["betas"] @ directions).unflatten(1, (-1, 3))  # (B, V, 3) less the template
        total = s.w_keypoints * terms.keypoints(estimate, labels) + terms.priors(state)
        total = total + s.w_silhouette * terms.silhouette(estimate, labels, s.body_size, sigma)
        total = total + s.w_outside * terms.outside(estimate, labels)
        total = total + _thinness(struts + across(shaped), s)
        if start is not None:
            total = total + terms.departure(state, labels, start)
            total = total + terms.start_keypoints(estimate, labels, start)
        return labels.known * total

    _descend(list(state.values()), _rates(state, s), s.body_steps, loss)
    return {name: value.detach() for name, value in state.items()}


def _deform(terms: Terms, state: State, labels: Labels, start: Prediction | None) -> Prediction:
    """Offsets of the vertices in the rest pose, to all labels."""
    s = terms.settings
    modes, stretch, across, struts = _prepared(terms.smal, s)
    weights = modes.new_zeros(len(labels.mask), modes.shape[1], 3)
    kept: Tensor | float = 0.0  # a network's offsets, where there is nothing to fit to
    if start is not None and start.del_v is not None:
        kept = start.del_v.detach() * (1 - labels.known)[:, None, None]

    def del_v() -> Tensor:
        return modes @ weights + kept  # (B, V, 3)

    def loss(progress: float) -> Tensor:
        moved = del_v()
        estimate = terms.estimate(state, moved)
        sigma = _between(*s.deform_sigma, progress)
        squared = stretch(moved).pow(2).sum(-1)  # (B, E)
        over = (squared - s.free_stretch**2).clamp_min(0)
        total = s.w_keypoints_deform * terms.keypoints(estimate, labels)
        total = total + s.w_silhouette * terms.silhouette(estimate, labels, s.deform_size, sigma)
        total = total + s.w_outside * terms.outside(estimate, labels)
        if start is not None:
            total = total + terms.start_keypoints(estimate, labels, start)
        total = total + s.w_stretch * squared.mean(1) + s.w_overstretch * over.pow(2).mean(1)
        total = total + _thinness(struts + across(moved), s)
        return labels.known * total

    _descend([weights], [s.deform_rate], s.deform_steps, loss, uniform=True)
    with torch.no_grad():
        moved = del_v()
        return Prediction(
            coarse=terms.estimate(state),
            trans=state["trans"],
            pose=state["pose"],
            betas=state["betas"],
            betas_logscale=state.get("logscale"),
            features=start.features if start else ImageFeatures((), modes.new_zeros(len(moved), 0)),
            refined=terms.estimate(state, moved),
            del_v=moved,
        )


def _thinness(lines: Tensor, settings: FitSettings) -> Tensor:
    """(B,) how much thinner parts have become than is free, weighted; lines (B, S, 3)."""
    thin = (settings.free_thickness - lines.norm(dim=-1)).clamp_min(0)
    return settings.w_thin * thin.pow(2).sum(1) / max(1, thin.shape[1])


_MODES: WeakKeyDictionary[SMAL, dict] = WeakKeyDictionary()  # of each body, by number and stiffness


def _prepared(smal: SMAL, settings: FitSettings) -> tuple[Tensor, SparseMap, SparseMap, Tensor]:
    """Of `_smooth_modes` and `_struts`, made once for a body."""
    cached, key = _MODES.setdefault(smal, {}), (settings.modes, settings.stiffness)
    if key not in cached or cached[key][0].device != smal.template.device:
        cached[key] = *_smooth_modes(smal, settings), *_struts(smal)
    return cached[key]


def _smooth_modes(smal: SMAL, settings: FitSettings) -> tuple[Tensor, SparseMap]:
    """(V, K) modes that stretch the edges least; the map from offsets to relative stretch (E)."""
    links = scipy.sparse.triu(adjacency(smal.faces.cpu().numpy(), smal.num_verts)).tocoo()
    verts = smal.template.cpu().double().numpy()
    length = np.linalg.norm(verts[links.row] - verts[links.col], axis=1)
    length = np.maximum(length, 0.2 * np.median(length))
    count = len(length)
    ends = np.concatenate([links.row, links.col])
    entries = np.concatenate([1 / length, -1 / length]), (np.tile(np.arange(count), 2), ends)
    stretch = scipy.sparse.csr_matrix(entries, shape=(count, smal.num_verts))
    laplacian = stretch.T @ stretch
    laplacian = (laplacian / laplacian.diagonal().mean()).tocsc()
    first = np.random.default_rng(0).standard_normal(smal.num_verts)
    solve = scipy.sparse.linalg.eigsh
    number = min(settings.modes, smal.num_verts - 2)
    values, vectors = solve(laplacian, k=number, sigma=-1e-4, v0=first)
    modes = vectors * math.sqrt(smal.num_verts) / (1 + values / settings.stiffness)
    device = smal.template.device
    return torch.tensor(modes, dtype=torch.float32, device=device), SparseMap(stretch).to(device)


def _struts(smal: SMAL) -> tuple[SparseMap, Tensor]:
    """Straight lines through thin parts, from a vertex to one that faces away on the other side.

    Edges alone let a leg fold into a blade seen edge-on, with no edge the shorter.

    Returns:
        The map from offsets (V, 3) to changes of the lines (S, 3), and the lines, of length 1.
    """
    template = smal.template.cpu().double()
    normals = vertex_normals(template[None], smal.faces.cpu())[0].numpy()
    verts = template.numpy()
    near = cKDTree(verts).query(verts, min(NEIGHBOURS, len(verts)))[1]  # (V, K), the nearest first
    lines = verts[near] - verts[:, None]  # (V, K, 3)
    length = np.linalg.norm(lines, axis=-1)
    inwards = -np.einsum("vkc,vc->vk", lines, normals) > 0.8 * length
    opposite = np.einsum("vkc,vc->vk", normals[near], normals) < -0.7
    found = inwards & opposite & (length > 0)
    start = np.flatnonzero(found.any(1))
    first = found[start].argmax(1)
    end, length = near[start, first], length[start, first]
    entries = np.concatenate([-1 / length, 1 / length])
    rows = np.tile(np.arange(len(start)), 2)
    shape = len(start), smal.num_verts
    change = scipy.sparse.csr_matrix((entries, (rows, np.concatenate([start, end]))), shape=shape)
    device = smal.template.device
    unit = torch.tensor(change @ verts, dtype=torch.float32, device=device)
    return SparseMap(change).to(device), unit


def _rates(state: State, settings: FitSettings) -> list[float]:
    return [settings.body_rate * (2 if name == "betas" else 1) for name in state]


def _descend(
    params: list[Tensor],
    rates: list[float],
    steps: int,
    loss: Callable[[float], Tensor],
    uniform: bool = False,
) -> None:
    """Adam in place, its rates falling along half a cosine; `loss(progress)` gives (N,).

    uniform: one second moment for all numbers of an image (Nicolet et al., SIGGRAPH Asia 2021), so
    that what hardly changes the loss hardly moves.
    """
    for param in params:
        param.requires_grad_()
    first, second = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    for step in range(steps):
        progress = step / max(steps - 1, 1)
        fade = FADE + (1 - FADE) * (1 + math.cos(math.pi * progress)) / 2
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


def _box(points: Tensor, chosen: Tensor) -> Tensor:
    """(N, 2, 2) least and greatest row and column of points (N, K, 2) where chosen (N, K, ...)."""
    low = torch.where(chosen, points, math.inf).amin(1)
    return torch.stack([low, torch.where(chosen, points, -math.inf).amax(1)], 1)
