"""Parameters that fit.py wrote, as labels of training images where the fit is good."""

from pathlib import Path

import numpy as np
import torch

from smal_model import NUM_BETAS, NUM_LOGSCALES
from smal_model.joints import NAMES
from util.errors import InputError

from .ground_truth import Mirror, read_arrays, rotations_in_crop
from .transforms import Augmentation, box_center_and_side

LEAST_IOU, LEAST_PCK = 0.8, 0.9  # of a good fit, of the body before its vertices are deformed
SAME_CROP = 0.02  # fraction of the crop's side by which its centre and side may differ
SHAPES = {  # of the arrays that are read of a file; None: of the body
    "pose": (3 * len(NAMES),),
    "betas": (NUM_BETAS,),
    "del_v": (None, 3),
    "iou": (),
    "pck": (),
    "crop_center": (2,),
    "crop_side": (),
}
OPTIONAL = {"betas_logscale": (NUM_LOGSCALES,)}


class Fits:
    """The good fits in the folder of a run of fit.py.

    Good: PCK is at least `LEAST_PCK` and, where a mask is labelled, IoU at least `LEAST_IOU`, so
    that a fit without keypoints, whose heading is a guess, is not.

    Args:
        folder: --output_dir of fit.py.
        body_folder: of the body's files.

    Raises:
        InputError: the folder holds no parameters, or those of another body or fit.py.
    """

    def __init__(self, folder: Path, body_folder: Path):
        self.folder, self.mirror = folder, Mirror.of_body(body_folder)
        paths = sorted(p for p in (folder / "parameters").glob("*.npz") if p.name[0] != ".")
        if not paths:
            raise InputError(f"{folder} holds no parameters/*.npz, expected the results of fit.py")
        self.num_files = len(paths)
        self._good: dict[str, dict[str, np.ndarray]] = {}
        size = len(self.mirror.verts)
        for path in paths:
            fit = read_arrays(path, SHAPES, "run fit.py again", OPTIONAL)
            if len(moved := fit.pop("del_v")) != size:
                found = f"{path} is of a body of {len(moved)} vertices"
                raise InputError(f"{found}, expected {size}: give the --param_dir of that fit")
            if _is_good(fit):
                self._good[path.stem] = fit

    def find(self, name: str, box) -> dict[str, np.ndarray] | None:
        """The good fit of an image, None without one; one to another box is none.

        Args:
            name: of the sample.
            box: (x, y, w, h) of the animal, pixels of the image.
        """
        fit = self._good.get(name)
        if fit is None:
            return None
        center, side = box_center_and_side(box)
        apart = [*(fit["crop_center"] - center), fit["crop_side"] - side]
        return fit if np.abs(apart).max() <= SAME_CROP * side else None

    def in_crop(self, fit: dict | None, change: Augmentation) -> dict[str, torch.Tensor]:
        """The sample's labels of a fit, turned and mirrored as its crop is; zeros without one."""
        values = {
            "rotations": np.zeros((len(self.mirror.joints), 3, 3)),
            "betas": np.zeros(NUM_BETAS),
            "logscale": np.zeros(NUM_LOGSCALES),
        }
        if fit is not None:
            values["rotations"] = rotations_in_crop(fit["pose"], change, self.mirror)
            values["betas"] = fit["betas"]
            values["logscale"] = fit.get("betas_logscale", values["logscale"])
        labels = {f"fit_{k}": torch.tensor(v, dtype=torch.float32) for k, v in values.items()}
        labels["has_fit"] = torch.tensor(fit is not None)
        labels["has_fit_logscale"] = torch.tensor(fit is not None and "betas_logscale" in fit)
        return labels


def _is_good(fit: dict[str, np.ndarray]) -> bool:
    finite = all(np.isfinite(v).all() for k, v in fit.items() if k not in ("iou", "pck"))
    covers = bool(np.isnan(fit["iou"]) or fit["iou"] >= LEAST_IOU)
    return finite and covers and bool(fit["pck"] >= LEAST_PCK)
