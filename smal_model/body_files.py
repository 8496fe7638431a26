"""The body's files: read, checked and handed on as one `BodyData`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from util.errors import InputError

from . import joints
from .tables import load_table, require

MODEL_FILE, FAMILY_FILE = "my_smpl_00781_4_all", "my_smpl_data_00781_4_all"
SYMMETRY_FILE = "symIdx"
NUM_BETAS = 20  # shape coefficients that the network predicts
_MISSING = (
    "The SMAL body is licensed: get it from https://smal.is.tue.mpg.de and put it there"
    " (see data/README.md), or make the embedded body, which needs no licence:"
    " python -m synthetic --data_dir data/synthetic."
)


@dataclass(frozen=True, eq=False)
class BodyData:
    """One animal body as its files give it: V vertices, F faces, J joints, K shape directions.

    Lengths are in the body's units; axes at rest: x towards the head, y to the left, z up.
    """

    template: np.ndarray  # (V, 3) vertices at rest, before `align_template`
    faces: np.ndarray  # (F, 3) int64
    shapedirs: np.ndarray  # (V, 3, K) offsets for one unit of each shape coefficient
    posedirs: np.ndarray  # (V, 3, 9 * (J - 1)) offsets for R - I of each joint but the root
    J_regressor: np.ndarray  # (J, V) joints as weighted means of vertices
    weights: np.ndarray  # (V, J) skinning weights
    parents: np.ndarray  # (J,) int64, the root's is -1
    symmetry: np.ndarray  # (V,) int64, each vertex's mirror image
    family_means: np.ndarray  # (N, K) shape coefficients of each family's mean
    family_covs: np.ndarray  # (N, K, K) their covariances
    mirror_plane: np.ndarray  # indices of the vertices on y = 0
    landmarks: np.ndarray  # (6,) indices, in the order of `joints.LANDMARK_VERTICES`
    source: str = "the body"  # its name in errors

    def __post_init__(self):
        num_verts, num_joints = len(self.template), self.weights.shape[-1]
        num_families, num_shapes = len(self.family_means), self.shapedirs.shape[-1]
        expected = {
            "v_template": (self.template, (num_verts, 3)),
            "f": (self.faces, (len(self.faces), 3)),
            "weights": (self.weights, (num_verts, num_joints)),
            "kintree_table": (self.parents, (num_joints,)),
            "shapedirs": (self.shapedirs, (num_verts, 3, num_shapes)),
            "cluster_means": (self.family_means, (num_families, num_shapes)),
            "cluster_cov": (self.family_covs, (num_families, num_shapes, num_shapes)),
            "posedirs": (self.posedirs, (num_verts, 3, 9 * (num_joints - 1))),
            "J_regressor": (self.J_regressor, (num_joints, num_verts)),
            "symIdx": (self.symmetry, (num_verts,)),
        }
        for key, (array, shape) in expected.items():
            if array.shape != shape:
                raise InputError(
                    f"{key} in {self.source} has shape {array.shape}, expected {shape};"
                    " the files do not belong together."
                )
        if num_joints != len(joints.NAMES):
            raise InputError(
                f"{self.source} has {num_joints} joints, expected SMAL's {len(joints.NAMES)}."
            )
        if num_shapes < NUM_BETAS:
            raise InputError(
                f"{self.source} has {num_shapes} shape directions, expected {NUM_BETAS} or more."
            )
        if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < num_verts:
            raise InputError(
                f"f in {self.source} names vertices {self.faces.min()} to {self.faces.max()};"
                f" the body has {num_verts}."
            )


def load_body(folder) -> BodyData:
    """Reads the three files of a body, each `.pkl` (as published) or `.npz` (plain arrays).

    Args:
        folder: holds `my_smpl_00781_4_all`, `my_smpl_data_00781_4_all` and `symIdx`.

    Raises:
        InputError: a file is missing, cannot be read or does not fit the others.
    """
    folder = Path(folder)
    model, family, symmetry = (
        load_table(folder, stem, _MISSING) for stem in (MODEL_FILE, FAMILY_FILE, SYMMETRY_FILE)
    )
    keys = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
    require(model, keys, folder / MODEL_FILE)
    require(symmetry, (SYMMETRY_FILE,), folder / SYMMETRY_FILE)
    require(family, ("cluster_means", "cluster_cov"), folder / FAMILY_FILE)

    template, shapedirs, posedirs, weights = (
        np.asarray(model[k], np.float64) for k in ("v_template", "shapedirs", "posedirs", "weights")
    )
    regressor = model["J_regressor"]
    if scipy.sparse.issparse(regressor):
        regressor = regressor.toarray()
    tree = np.asarray(model["kintree_table"]).astype(np.int64)
    if tree.shape != (2, weights.shape[-1]):
        raise InputError(
            f"kintree_table in {folder} has shape {tree.shape}, expected (2, {weights.shape[-1]})."
        )
    return BodyData(
        template=template,
        faces=np.asarray(model["f"]).astype(np.int64),
        shapedirs=shapedirs,
        posedirs=posedirs,
        J_regressor=np.asarray(regressor, np.float64),
        weights=weights,
        parents=tree[0].astype(np.int32).astype(np.int64),  # the root's is stored as 2^32 - 1
        symmetry=np.asarray(symmetry[SYMMETRY_FILE]).astype(np.int64).ravel(),
        family_means=np.asarray(family["cluster_means"], np.float64),
        family_covs=np.asarray(family["cluster_cov"], np.float64),
        mirror_plane=np.asarray(model.get("mirror_plane_vertices", joints.MIRROR_PLANE_VERTICES)),
        landmarks=np.asarray(model.get("landmark_vertices", joints.LANDMARK_VERTICES)),
        source=str(folder),
    )
