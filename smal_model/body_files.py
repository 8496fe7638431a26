"""The body's files: read, checked and handed on as one `BodyData`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from util.errors import InputError

from . import joints, lbs
from .checks import MAX_SHAPES, MAX_VERTS, floats, integers
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
            "landmark_vertices": (self.landmarks, (len(joints.LANDMARK_VERTICES),)),
        }
        for key, (array, shape) in expected.items():
            if array.shape != shape:
                raise InputError(
                    f"{self._name(key)} has shape {array.shape}, expected {shape};"
                    " the files do not belong together."
                )
        counts = {
            "joints": (num_joints, len(joints.NAMES), len(joints.NAMES)),
            "vertices": (num_verts, 1, MAX_VERTS),
            "faces": (len(self.faces), 1, 2 * MAX_VERTS),
            "shape directions": (num_shapes, NUM_BETAS, MAX_SHAPES),
            "vertices on its mirror plane": (self.mirror_plane.size, 1, num_verts),
        }
        for name, (found, low, high) in counts.items():
            if not low <= found <= high:
                raise InputError(
                    f"{MODEL_FILE} in {self.source} has {found} {name}, expected {low} to {high}."
                )
        indices = {
            "f": self.faces,
            "symIdx": self.symmetry,
            "mirror_plane_vertices": self.mirror_plane,
            "landmark_vertices": self.landmarks,
        }
        for key, array in indices.items():
            if not 0 <= array.min() <= array.max() < num_verts:
                raise InputError(
                    f"{self._name(key)} names vertices {array.min()} to {array.max()};"
                    f" the body has {num_verts}."
                )
        try:
            lbs.ancestors(self.parents.tolist())
        except ValueError as e:
            raise InputError(f"{self._name('kintree_table')} is no tree: {e}.") from None

    def _name(self, key):
        file = {"cluster_means": FAMILY_FILE, "cluster_cov": FAMILY_FILE, "symIdx": SYMMETRY_FILE}
        return f"{key} of {file.get(key, MODEL_FILE)} in {self.source}"


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

    path = folder / MODEL_FILE
    weights, template = floats(model, "weights", path, 2), floats(model, "v_template", path, 2)
    regressor = model["J_regressor"]
    if scipy.sparse.issparse(regressor):
        shape = weights.shape[1], len(template)
        if regressor.shape != shape:  # before it is made dense
            raise InputError(
                f"J_regressor in {path} has shape {regressor.shape}, expected {shape}."
            )
        model["J_regressor"] = regressor.toarray()
    tree = integers(model, "kintree_table", path, 2)  # parents, joints
    if tree.shape != (2, weights.shape[1]):
        raise InputError(
            f"kintree_table in {path} has shape {tree.shape}, expected (2, {weights.shape[1]})."
        )
    model.setdefault("mirror_plane_vertices", joints.MIRROR_PLANE_VERTICES)
    model.setdefault("landmark_vertices", joints.LANDMARK_VERTICES)
    return BodyData(
        template=template,
        faces=integers(model, "f", path, 2),
        shapedirs=floats(model, "shapedirs", path, 3),
        posedirs=floats(model, "posedirs", path, 3),
        J_regressor=floats(model, "J_regressor", path, 2),
        weights=weights,
        parents=np.where(tree[0] == 2**32 - 1, -1, tree[0]),  # the root's as it is published
        symmetry=integers(symmetry, SYMMETRY_FILE, folder / SYMMETRY_FILE, 1),
        family_means=floats(family, "cluster_means", folder / FAMILY_FILE, 2),
        family_covs=floats(family, "cluster_cov", folder / FAMILY_FILE, 3),
        mirror_plane=integers(model, "mirror_plane_vertices", path, 1),
        landmarks=integers(model, "landmark_vertices", path, 1),
        source=str(folder),
    )
