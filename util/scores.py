"""Scores of a set of images, typed by mesh and keypoint group."""

import math
from dataclasses import dataclass, field

import numpy as np


def nanmean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where all is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


@dataclass
class MeshScores:
    """Scores of one mesh, arrays (N,) with one value an image; NaN where the label is missing.

    pck, iou: in [0, 1], by the published protocol.
    iou_clean: in [0, 1], of the hard silhouette and mask, inside the photograph's true border.
    pck_by_group: likewise, by keypoint group (util.metrics.GROUPS).
    errors: (N, K) distances of the keypoints / square root of the mask's area.
    pa_mpvpe, pa_mpjpe: in body lengths; None without 3D ground truth.
    """

    pck: np.ndarray
    pck_by_group: dict[str, np.ndarray]
    iou: np.ndarray
    iou_clean: np.ndarray
    errors: np.ndarray
    pa_mpvpe: np.ndarray | None = None
    pa_mpjpe: np.ndarray | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """All of them but `errors` by name, groups as `pck_<group>`."""
        groups = {f"pck_{name}": values for name, values in self.pck_by_group.items()}
        errors = {"pa_mpvpe": self.pa_mpvpe, "pa_mpjpe": self.pa_mpjpe}
        known = {name: values for name, values in errors.items() if values is not None}
        return {"pck": self.pck, **groups, "iou": self.iou, "iou_clean": self.iou_clean, **known}

    @classmethod
    def joined(cls, parts: list["MeshScores"]) -> "MeshScores":
        """The scores of several batches as one."""
        columns = [part.columns() for part in parts]
        whole = {k: np.concatenate([c[k] for c in columns]) for k in columns[0]}
        groups = {name: whole.pop(f"pck_{name}") for name in parts[0].pck_by_group}
        return cls(pck_by_group=groups, errors=np.concatenate([p.errors for p in parts]), **whole)


@dataclass
class Scores:
    """Names of the images, and scores of the meshes `coarse` and, where there is one, `refined`."""

    names: list[str] = field(default_factory=list)
    meshes: dict[str, MeshScores] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: list["Scores"]) -> "Scores":
        """The scores of several batches as one."""
        names = [name for part in parts for name in part.names]
        first = parts[0].meshes
        return cls(names, {m: MeshScores.joined([p.meshes[m] for p in parts]) for m in first})

    def columns(self) -> dict[str, np.ndarray]:
        """All in one dict: `pck`, `pck_legs`, ..., then `pck_refined`, `pck_refined_legs`, ..."""
        out = {}
        for mesh, scores in self.meshes.items():
            suffix = "" if mesh == "coarse" else f"_{mesh}"
            for name, values in scores.columns().items():
                is_group = name.removeprefix("pck_") in scores.pck_by_group
                key = f"pck{suffix}_{name.removeprefix('pck_')}" if is_group else name + suffix
                out[key] = values
        return out

    def means(self) -> dict[str, dict[str, float]]:
        """Means over the images that have the label, by mesh and name; NaN where none has it."""
        meshes = self.meshes.items()
        return {mesh: {k: nanmean(v) for k, v in s.columns().items()} for mesh, s in meshes}

    def selection_score(self) -> float:
        """What chooses the best epoch: the mean of PCK and IoU of the finest mesh."""
        *_, finest = self.meshes.values()
        return float(np.nansum([nanmean(finest.pck), nanmean(finest.iou)])) / 2


def pck_at(errors: np.ndarray, threshold: float) -> np.ndarray:
    """PCK of each image at a threshold: (N, K) errors to (N,); NaN where none is labelled."""
    labelled = (~np.isnan(errors)).sum(1)
    hits = (errors < threshold).sum(1)
    return np.where(labelled > 0, hits / np.maximum(labelled, 1), np.nan)


def pck_area(errors: np.ndarray, threshold: float) -> np.ndarray:
    """Area under PCK over thresholds from 0 to `threshold`, of each image, in [0, 1]; (N,)."""
    labelled = (~np.isnan(errors)).sum(1)
    area = np.clip(1 - np.nan_to_num(errors, nan=np.inf) / threshold, 0, 1).sum(1)
    return np.where(labelled > 0, area / np.maximum(labelled, 1), np.nan)


def interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean: percentiles over images drawn again with replacement (Efron 1979).

    Args:
        values: (N,), NaN left out.
        resamples: draws, with a fixed random seed.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)
