"""Shape and pose priors, read once into modules with buffers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from util.errors import InputError

from . import joints
from .body_files import FAMILY_FILE, NUM_BETAS
from .checks import floats, is_finite
from .smal import NUM_LOGSCALES, SMAL
from .tables import load_table, require

FAMILIES = ("smal", "unity")
POSE_PRIOR_FILES = {
    "smal": "walking_toy_symmetric_pose_prior_with_cov_35parts",
    "unity": "unity_pose_prior_with_cov_35parts",
}
UNITY_BETAS_FILE = "unity_betas.npz"
_MISSING = "It comes with the method's data (data/README.md)."


class GaussianPrior(nn.Module):
    """Mean squared whitened distance to a mean: ((x - mean) factor)^2, x a row vector.

    Args:
        mean: (n,).
        factor: (n, n).
        skip: that many leading entries of the product count as 0.
    """

    mean: torch.Tensor
    factor: torch.Tensor

    def __init__(self, mean, factor, skip: int = 0):
        super().__init__()
        mean = torch.as_tensor(np.asarray(mean), dtype=torch.float32)
        self.register_buffer("mean", mean, persistent=False)
        factor = torch.tensor(np.asarray(factor), dtype=torch.float32)
        factor[:, :skip] = 0
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, x: torch.Tensor, average: Callable = torch.mean) -> torch.Tensor:
        """The mean over all B x n entries, taken by `average`. x: (B, n)."""
        if x.ndim != 2 or x.shape[1] != self.mean.shape[0]:
            raise ValueError(
                f"the prior is over {self.mean.shape[0]} numbers, found {tuple(x.shape)}"
            )
        return average(((x - self.mean) @ self.factor).pow(2))


def _precision_factor(cov, n, source):
    """The first n x n block of the lower Cholesky factor of the whole (cov + 1e-5 I)^-1."""
    try:
        factor = np.linalg.cholesky(np.linalg.inv(cov + 1e-5 * np.eye(len(cov))))[:n, :n]
    except np.linalg.LinAlgError as e:
        raise InputError(f"{source} is no covariance ({e}).") from None
    if not is_finite(factor):
        raise InputError(f"{source} is a covariance that cannot be inverted.")
    return factor


def _read(folder, stem, keys, size):
    """A mean (size,) and a matrix (size, size) under the two `keys` of a table."""
    table, path = load_table(folder, stem, _MISSING), Path(folder) / stem
    require(table, keys, path)
    mean, matrix = floats(table, keys[0], path, 1), floats(table, keys[1], path, 2)
    if mean.shape != (size,) or matrix.shape != (size, size):
        raise InputError(
            f"{keys[0]} and {keys[1]} in {path} have shapes {mean.shape} and {matrix.shape},"
            f" expected {(size,)} and {(size, size)}."
        )
    return mean, matrix


def unity_betas(data_dir) -> tuple[np.ndarray, np.ndarray]:
    """Mean (26,) and covariance (26, 26) of the Unity animals: 20 betas, then 6 log-scales.

    Args:
        data_dir: holds `priors/unity_betas.npz`.

    Raises:
        InputError: the file is missing or holds something else.
    """
    stem = Path(UNITY_BETAS_FILE).stem
    size = NUM_BETAS + NUM_LOGSCALES + 1  # the last entry is not used
    mean, cov = _read(Path(data_dir) / "priors", stem, ("mean", "cov"), size)
    return mean[:-1], cov[:-1, :-1]


def shape_prior(family: str, smal: SMAL, data_dir) -> GaussianPrior:
    """The prior on the shape.

    Args:
        family: `smal`, of the body's family, over 20 betas; `unity`, with 6 log-scales (26).
        smal: the body.
        data_dir: holds `priors/unity_betas.npz`, read for `unity` alone.

    Raises:
        InputError: a file is missing or holds no covariance.
    """
    if family == "smal":
        source = f"cluster_cov of {FAMILY_FILE} in {smal.source}"
        factor = _precision_factor(smal.family_cov, NUM_BETAS, source)
        return GaussianPrior(smal.family_mean[:NUM_BETAS], factor)
    mean, cov = unity_betas(data_dir)
    source = f"cov in {Path(data_dir) / 'priors' / UNITY_BETAS_FILE}"
    return GaussianPrior(mean, _precision_factor(cov, NUM_BETAS + NUM_LOGSCALES, source))


def pose_prior(family: str, data_dir) -> GaussianPrior:
    """The prior on the 3 J pose numbers; the global rotation, the first three, does not count.

    Args:
        family: `smal` or `unity`.
        data_dir: holds `priors/<POSE_PRIOR_FILES[family]>`, `.pkl` or `.npz`.

    Raises:
        InputError: the file is missing or holds something else.
    """
    keys, size = ("mean_pose", "pic"), 3 * len(joints.NAMES)
    mean, factor = _read(Path(data_dir) / "priors", POSE_PRIOR_FILES[family], keys, size)
    return GaussianPrior(mean, factor, skip=3)


def joint_limits() -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high), each (96,): limits in radians of the axis-angle components of joints 1...32."""
    limits = torch.tensor(joints.JOINT_LIMITS)  # (32, 2, 3)
    return limits[:, 0].flatten(), limits[:, 1].flatten()
