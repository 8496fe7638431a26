"""Shape and pose priors, read once into modules with buffers."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import joints
from .body_files import load_npz, load_table, require
from .smal import NUM_BETAS, NUM_LOGSCALES, SMAL

FAMILIES = ("smal", "unity")
POSE_PRIOR_FILES = {
    "smal": "walking_toy_symmetric_pose_prior_with_cov_35parts",
    "unity": "unity_pose_prior_with_cov_35parts",
}
UNITY_BETAS_FILE = "unity_betas.npz"


class GaussianPrior(nn.Module):
    """Mean squared whitened distance to a mean: mean over B x n of ((x - mean) factor)^2, x a row vector.

    mean: (n,); factor: (n, n). `skip`: that many leading entries of the product count as 0.
    """

    def __init__(self, mean, factor, skip: int = 0):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(np.asarray(mean), dtype=torch.float32), persistent=False)
        factor = torch.tensor(np.asarray(factor), dtype=torch.float32)
        factor[:, :skip] = 0
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 2 or x.shape[1] != self.mean.shape[0]:
            raise ValueError(f"the prior is over {self.mean.shape[0]} numbers, found {tuple(x.shape)}")
        return ((x - self.mean) @ self.factor).pow(2).mean()


def _precision_factor(cov, n):
    """The first n x n block of the lower Cholesky factor of the whole (cov + 1e-5 I)^-1."""
    cov = np.asarray(cov, np.float64)
    return np.linalg.cholesky(np.linalg.inv(cov + 1e-5 * np.eye(len(cov))))[:n, :n]


def unity_betas(data_dir) -> tuple[np.ndarray, np.ndarray]:
    """Mean (26,) and covariance (26, 26) of the Unity animals: 20 shape coefficients, then 6 log-scales."""
    path = Path(data_dir) / "priors" / UNITY_BETAS_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it comes with the method's data (data/README.md).")
    table = load_npz(path, keys=("mean", "cov"))
    require(table, ("mean", "cov"), path)
    return np.asarray(table["mean"], np.float64)[:-1], np.asarray(table["cov"], np.float64)[:-1, :-1]


def shape_prior(family: str, smal: SMAL, data_dir) -> GaussianPrior:
    """`smal`: over the 20 betas, from the body's shape family; `unity`: over betas and log-scales joined (26)."""
    if family == "smal":
        return GaussianPrior(smal.family_mean[:NUM_BETAS], _precision_factor(smal.family_cov, NUM_BETAS))
    mean, cov = unity_betas(data_dir)
    return GaussianPrior(mean, _precision_factor(cov, NUM_BETAS + NUM_LOGSCALES))


def pose_prior(family: str, data_dir) -> GaussianPrior:
    """Over the 3 J pose numbers; the first three entries of the product (the global rotation) do not count."""
    folder, stem = Path(data_dir) / "priors", POSE_PRIOR_FILES[family]
    try:
        table = load_table(folder, stem)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{e}; it comes with the method's data (data/README.md).") from None
    require(table, ("mean_pose", "pic"), folder / stem)
    return GaussianPrior(np.asarray(table["mean_pose"]).ravel(), table["pic"], skip=3)


def joint_limits() -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high), each (96,): limits of the axis-angle components of joints 1...32."""
    limits = torch.tensor(joints.JOINT_LIMITS)  # (32, 2, 3)
    return limits[:, 0].flatten(), limits[:, 1].flatten()
