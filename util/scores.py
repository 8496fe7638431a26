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

    pck, iou: in [0, 1].
    pck_by_group: likewise, by keypoint group (util.metrics.GROUPS).
    pa_mpvpe, pa_mpjpe: in body lengths; None without 3D ground truth.
    """

    pck: np.ndarray
    pck_by_group: dict[str, np.ndarray]
    iou: np.ndarray
    pa_mpvpe: np.ndarray | None = None
    pa_mpjpe: np.ndarray | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """All of them by name, groups as `pck_<group>`."""
        groups = {f"pck_{name}": values for name, values in self.pck_by_group.items()}
        errors = {"pa_mpvpe": self.pa_mpvpe, "pa_mpjpe": self.pa_mpjpe}
        known = {name: values for name, values in errors.items() if values is not None}
        return {"pck": self.pck, **groups, "iou": self.iou, **known}

    @classmethod
    def joined(cls, parts: list["MeshScores"]) -> "MeshScores":
        """The scores of several batches as one."""
        columns = [part.columns() for part in parts]
        whole = {k: np.concatenate([c[k] for c in columns]) for k in columns[0]}
        groups = {name: whole.pop(f"pck_{name}") for name in parts[0].pck_by_group}
        return cls(pck_by_group=groups, **whole)


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
        finest = self.meshes.get("refined") or self.meshes["coarse"]
        return float(np.nansum([nanmean(finest.pck), nanmean(finest.iou)])) / 2
