"""The results of an evaluation or a fit on disk: strips and arrays of each image, and the page."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from model.outputs import Prediction
from util import distributed
from util.files import atomic_write
from util.images import to_image, write_png
from util.scores import Scores

from .meshes import vertex_colors
from .overlays import array_of, batch_strips
from .page import PageImage, write_page


class Results:
    """Collects results batch by batch, of several processes in each those of its batches.

    Args:
        folder: of the results.
        faces: (F, 3).
        renderer: backend of `render`.
        save_images: write for each image `<name>.png`, a strip, and `<name>.npz`, its arrays.
    """

    def __init__(
        self, folder: Path, faces: torch.Tensor, renderer: str = "auto", save_images: bool = True
    ):
        self.folder, self.faces, self.renderer = folder, faces, renderer
        self.save_images = save_images
        self.batches: list[list[PageImage]] = []

    def add(self, batch: dict, out: Prediction, scores: Scores) -> None:
        """Takes a batch, its prediction and its scores."""
        columns = {k: v for k, v in scores.columns().items() if not k.startswith("iou_clean")}
        if self.save_images:
            strips = batch_strips(batch, out, self.faces, scores, self.renderer)
            arrays = result_arrays(out, scores)
        self.batches.append([])
        for i, name in enumerate(batch["name"]):
            image = PageImage(name, scores={k: float(v[i]) for k, v in columns.items()})
            image.errors = {mesh: part.errors[i] for mesh, part in scores.meshes.items()}
            if self.save_images:
                write_png(self.folder / f"{name}.png", strips[i])
                with atomic_write(self.folder / f"{name}.npz") as temporary:
                    np.savez(temporary, **{key: value[i] for key, value in arrays.items()})
                image.strip = f"{name}.png"
                image.files = {"arrays": f"{name}.npz"}
                crop = to_image(batch["image"][i])
                for n, e in out.estimates.items():
                    if e.verts[i].isfinite().all():
                        shown = e.verts[i], e.plane[i], self.faces
                        image.meshes[n] = array_of(e.verts[i])
                        image.colors[n] = vertex_colors(crop, *shown, backend=self.renderer)
            self.batches[-1].append(image)

    def write_page(self, title: str, facts: Mapping[str, object]) -> None:
        """Writes `index.html` with all that was added, in the first process."""
        images = list(chain(*distributed.gather_interleaved(self.batches, to_all=False)))
        if distributed.is_main():
            write_page(self.folder, title, images, array_of(self.faces), facts)


def result_arrays(out: Prediction, scores: Scores) -> dict:
    """Arrays (B, ...) by name: of each mesh (refined: `_refined`), and the parameters."""
    values: dict = {}
    for name, estimate in out.estimates.items():
        suffix = "" if name == "coarse" else f"_{name}"
        columns = scores.meshes[name].columns()
        values |= {
            f"verts{suffix}": estimate.verts,
            f"joints{suffix}": estimate.joints,
            f"keypoints{suffix}_row_col": estimate.keypoints_px,
            **{k + suffix: v for k, v in columns.items() if not k.startswith("pck_")},
        }
    values |= {"pose": out.pose, "betas": out.betas, "trans": out.trans, "scale": out.coarse.scale}
    if out.betas_logscale is not None:
        values["betas_logscale"] = out.betas_logscale
    return {key: array_of(value) for key, value in values.items()}
