"""Training losses (paper, section 3.4): functions of predictions and labels, and their sum."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import numpy as np
import scipy.sparse
import torch
from torch import nn

import render
from model.keypoint_maps import keypoint_weights, map_loss
from model.outline import outline_loss
from model.outputs import Answer, Estimate, Prediction
from smal_model import SMAL
from smal_model.lbs import rodrigues
from smal_model.mesh import SparseMap, adjacency
from smal_model.priors import GaussianPrior, joint_limits
from util import distributed
from util.camera import CROP, DISTANCE
from util.metrics import aligned_error

TVERSKY_EPS = 1e-5
TRUTH_TERMS = ("verts", "pose", "betas", "camera", "verts_refine")
KEYPOINT_TERMS = ("kpts", "kpts_refine", "kpts_robust")
ROBUST = 0.15  # of the root of the animal's area: a keypoint so far off counts half
Reduction = Callable[[torch.Tensor], torch.Tensor]  # over a tensor's entries


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; a term of weight 0 is not computed.

    kpts, betas_prior, pose_prior, pose_limit_prior, dice: of the coarse estimate.
    kpts_refine, dice_refine, arap: of the refined one. kpts_robust: also, what is far off counts
        little: squares pull a doubtful keypoint to the middle of the places where it may be.
    maps, maps_refine: of the heat maps of the keypoints, at first and at a second look.
    outline: of the map of the animal's outline.
    verts, pose, betas, camera: of the coarse estimate, where there is ground truth.
    verts_refine: of the refined one, after similarity alignment: it is not moved as a whole.
    param: pose and shape, where an image has a good fit (datasets.fits).
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
    maps: float = 0.0
    outline: float = 0.0
    verts: float = 0.0
    pose: float = 0.0
    betas: float = 0.0
    camera: float = 0.0
    verts_refine: float = 0.0
    kpts_robust: float = 0.0
    maps_refine: float = 0.0
    param: float = 0.0
    alpha: float = 0.6
    beta: float = 0.4

    @property
    def terms(self) -> dict[str, float]:
        """The terms that count, by name."""
        return {k: w for k, w in asdict(self).items() if w and k not in ("alpha", "beta")}

    @property
    def needs_truth(self) -> bool:
        """Whether a term takes ground truth."""
        return any(self.terms.get(name) for name in TRUTH_TERMS)


def term_weights(batch: dict) -> dict[str, torch.Tensor]:
    """What a batch counts in the mean of each term, () float64: images with its label, mostly.

    The terms of a whole batch are the means of those of its parts by these weights, but for the
    Tversky losses, which are no means over images.
    """
    known: dict = {name: batch["has_keypoints"] for name in KEYPOINT_TERMS}
    known |= {name: batch["has_truth"] for name in TRUTH_TERMS if "has_truth" in batch}
    if "has_fit" in batch:
        known["param"] = batch["has_fit"]
    known["outline"] = batch["mask_weight"].sum((1, 2))
    known["maps"] = keypoint_weights(batch["keypoints"], batch["has_keypoints"])
    known["maps_refine"] = known["maps"]
    every = batch["has_keypoints"].new_ones(len(batch["has_keypoints"]))
    names = [f.name for f in fields(LossWeights) if f.name not in ("alpha", "beta")]
    weights = {name: known.get(name, every).double().sum() for name in names}
    return weights | {f"before_{name}": weight for name, weight in weights.items()}


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


def robust_keypoint_loss(
    predicted: torch.Tensor,
    labels: torch.Tensor,
    area: torch.Tensor,
    has_label: torch.Tensor,
    total: Reduction = _alone,
) -> torch.Tensor:
    """Mean over B x K of d^2 / (d^2 + s^2), s ROBUST of the root of the area; hidden ones are 0.

    Geman and McClure's function, as in SMPLify (Bogo et al., ECCV 2016).

    Args:
        predicted: (B, K, 2) row, column in pixels of the crop.
        labels: (B, K, 3) row, column, visible.
        area: (B,) of the animal, square pixels.
        has_label: (B,) bool, images that count.
        total: the sum of its argument over processes (util.distributed).
    """
    squared = (predicted - labels[..., :2]).square().sum(-1)  # (B, K)
    half = ROBUST**2 * area.clamp_min(1)[:, None]
    counts = (labels[..., 2] > 0) & has_label[:, None]
    far = (squared / (squared + half)).where(counts, 0).sum()
    sums = total(torch.stack([far, has_label.sum().to(far.dtype) * labels.shape[1]]))
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


def _mean_known(errors: torch.Tensor, known: torch.Tensor, total: Reduction) -> torch.Tensor:
    """Mean of errors (B,) over the images that are known (B,), 0 where none is."""
    sums = total(torch.stack([(errors * known).sum(), known.sum().to(errors.dtype)]))
    return sums[0] / sums[1].clamp_min(1)


def root_distance(estimate: Estimate, batch: dict) -> torch.Tensor:
    """(B,) mean distance of vertices and ground truth, their roots in one place, body units."""
    ours = estimate.verts - estimate.joints[:, :1]
    theirs = batch["gt_verts"] - batch["gt_joints"][:, :1]
    return (ours - theirs).norm(dim=-1).mean(1)


def camera_distance(estimate: Estimate, batch: dict) -> torch.Tensor:
    """(B,) how far the view is from the ground truth's.

    Sum of the differences in place of the root (x, y, body units), log of the size in the image,
    and log of the depth, which an image shows only by its perspective: a tenth of that.
    """
    root, true_root = estimate.joints[:, 0], batch["gt_joints"][:, 0]  # (B, 3)
    depth = (DISTANCE + root[:, 2]).clamp_min(1).log()
    true_depth = (DISTANCE + true_root[:, 2]).clamp_min(1).log()
    zoom = (1 + estimate.scale[:, 0]).clamp_min(0.05).log() - depth
    true_zoom = (1 + batch["gt_scale"][:, 0]).clamp_min(0.05).log() - true_depth
    apart = (root - true_root)[:, :2].abs().sum(1)
    return apart + (zoom - true_zoom).abs() + 0.1 * (depth - true_depth).abs()


def rotation_distance(pose: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """(B,) mean squared difference of rotation matrices; pose (B, 3 J), rotations (B, J, 3, 3)."""
    ours = rodrigues(pose.unflatten(1, (-1, 3)))
    return (ours - rotations).pow(2).sum((2, 3)).mean(1)


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

    def _silhouette(self, estimate: Estimate, batch: dict, needed=None) -> torch.Tensor:
        plane, counts, mask = estimate.plane, batch["mask_weight"], batch["mask"]
        if needed is not None and plane.is_cuda:  # to choose images a host waits for the device
            counts = counts * needed[:, None, None]
        elif needed is not None:
            plane, counts, mask = plane[needed], counts[needed], mask[needed]
        silhouette = render.soft_silhouette(plane, self.faces, CROP, backend=self.renderer)
        silhouette, mask = silhouette * counts, mask * counts  # what is unsure adds to no sum
        alpha, beta = self.weights.alpha, self.weights.beta
        return tversky_loss(silhouette, mask, alpha, beta, distributed.total)

    def _keypoints(self, estimate: Estimate, batch: dict) -> torch.Tensor:
        labels, known = batch["keypoints"], batch["has_keypoints"]
        return keypoint_loss(estimate.keypoints_px, labels, known, distributed.total)

    def _robust_keypoints(self, estimate: Estimate, batch: dict) -> torch.Tensor:
        area = torch.where(batch["has_mask"], batch["mask"].sum((1, 2)), batch["area"])
        labels, known = batch["keypoints"], batch["has_keypoints"]
        points = estimate.keypoints_px
        return robust_keypoint_loss(points, labels, area, known, distributed.total)

    def _known(self, errors: torch.Tensor, batch: dict) -> torch.Tensor:
        return _mean_known(errors, batch["has_truth"], distributed.total)

    def _fitted(self, out: Prediction, batch: dict) -> torch.Tensor:
        errors = rotation_distance(out.pose, batch["fit_rotations"])  # (B,)
        errors = errors + (out.betas - batch["fit_betas"]).pow(2).mean(1)
        if out.betas_logscale is not None:
            apart = (out.betas_logscale - batch["fit_logscale"]).pow(2).mean(1)
            errors = errors + apart * batch["has_fit_logscale"]
        return _mean_known(errors, batch["has_fit"], distributed.total)

    def _maps(self, maps: torch.Tensor | None, batch: dict) -> torch.Tensor:
        assert maps is not None
        sums = map_loss(maps, batch["keypoints"], batch["has_keypoints"])
        sums = distributed.total(sums)
        return sums[0] / sums[1].clamp_min(1)

    def _outline(self, out: Prediction, batch: dict) -> torch.Tensor:
        assert out.outline is not None
        sums = distributed.total(outline_loss(out.outline, batch["mask"], batch["mask_weight"]))
        return sums[0] / sums[1].clamp_min(1)

    def _shape(self, body: Answer, logscale) -> torch.Tensor:
        values = body.betas
        if self.shape_prior.mean.shape[0] > values.shape[1] and logscale is not None:
            values = torch.cat([values, logscale], 1)
        return self.shape_prior(values, distributed.mean)

    def _priors(self, out: Prediction) -> dict[str, Callable]:
        """Of the coarse body, and added to that, of the body that the refiner posed anew."""
        mean = distributed.mean
        bodies = [out.own] if out.reposed is None else [out.own, out.reposed]

        def total(prior: Callable) -> Callable:
            return lambda: torch.stack([prior(body) for body in bodies]).sum()

        return {
            "betas_prior": total(lambda body: self._shape(body, out.betas_logscale)),
            "pose_prior": total(lambda body: self.pose_prior(body.pose, mean)),
            "pose_limit_prior": total(
                lambda body: joint_limit_loss(body.pose, self.low, self.high, mean)
            ),
        }

    def _answer(self, answer: Answer, batch: dict) -> dict[str, Callable]:
        """The terms of a coarse answer: that of the networks, and before its Kalman steps."""
        coarse = answer.estimate
        # vertices that are known say more than their outline
        masks_alone = ~batch["has_truth"] if self.weights.verts else None
        return {
            "kpts": lambda: self._keypoints(coarse, batch),
            "dice": lambda: self._silhouette(coarse, batch, masks_alone),
            "verts": lambda: self._known(root_distance(coarse, batch), batch),
            "pose": lambda: self._known(
                rotation_distance(answer.pose, batch["gt_rotations"]), batch
            ),
            "betas": lambda: self._known((answer.betas - batch["gt_betas"]).pow(2).mean(1), batch),
            "camera": lambda: self._known(camera_distance(coarse, batch), batch),
        }

    def forward(self, out: Prediction, batch: dict) -> dict[str, torch.Tensor]:
        """Weighted terms by name; their sum is the loss.

        Where the answer was moved to heat maps, `before_<term>` are those of the answer before:
        without them it drifts to where only the steps lead back.

        Args:
            out: of the networks.
            batch: samples of a data set, collated.
        """
        refined, mean = out.finest, distributed.mean
        compute = self._answer(out.own, batch) | self._priors(out)
        compute |= {
            "kpts_refine": lambda: self._keypoints(refined, batch),
            "kpts_robust": lambda: self._robust_keypoints(refined, batch),
            "dice_refine": lambda: self._silhouette(refined, batch),
            "arap": lambda: laplacian_loss(
                refined.verts, out.body.estimate.verts, self.laplacian, mean
            ),
            "maps": lambda: self._maps(out.keypoints and out.keypoints.maps, batch),
            "maps_refine": lambda: self._maps(out.second_maps, batch),
            "outline": lambda: self._outline(out, batch),
            "param": lambda: self._fitted(out, batch),
            "verts_refine": lambda: self._known(
                aligned_error(refined.verts, batch["gt_verts"]), batch
            ),
        }
        if out.before is not None and out.before.pose.requires_grad:
            before = self._answer(out.before, batch)
            compute |= {f"before_{name}": term for name, term in before.items()}
        weights = self.weights.terms
        return {
            name: weight * compute[name]()
            for term, weight in weights.items()
            for name in (term, f"before_{term}")
            if name in compute
        }
