"""The SMAL animal model (Zuffi et al., 3D Menagerie, CVPR 2017) as a differentiable layer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch import nn

from . import joints, lbs
from .body_files import load_table, require

MODEL_FILE, FAMILY_FILE, SYMMETRY_FILE = "my_smpl_00781_4_all", "my_smpl_data_00781_4_all", "symIdx"
NUM_BETAS = 20  # shape coefficients that the network predicts
NUM_LOGSCALES = len(joints.LOGSCALES)


@dataclass
class SMALOutput:
    """verts: (B, V, 3); joints: (B, J + 6, 3), the regressed joints followed by the six of `joints.LANDMARK_VERTICES`."""

    verts: torch.Tensor
    joints: torch.Tensor


def align_template(template, mirror_plane, symmetry) -> np.ndarray:
    """Centres the template and makes it mirror-symmetric about y = 0.

    template: (V, 3); mirror_plane: indices of the vertices on the plane; symmetry: (V,) index of each vertex's mirror image.
    One scalar mean is taken off all numbers; then the right half (y < 0) is mirrored onto the left.
    """
    v = np.array(template, dtype=np.float64)
    v -= v.mean()
    v[:, 1] -= v[mirror_plane, 1].mean()
    v[mirror_plane, 1] = 0
    left = v[:, 1] > 0
    v[left] = np.array([1, -1, 1]) * v[symmetry[left]]
    return v


class SMAL(nn.Module):
    """SMAL layer: shape coefficients, pose and translation to vertices and joints.

    model_dir: folder with `my_smpl_00781_4_all`, `my_smpl_data_00781_4_all` and `symIdx`, each `.pkl` (as published) or `.npz`
    (same keys, plain arrays). shape_family_id: row of the families' means and covariances (1 is dogs).
    Every size comes from these files. Buffers: faces (F, 3) int64, parents (J,), template (V, 3), shape directions, pose
    directions, joint regressor, skinning weights. `family_mean` (K,) and `family_cov` (K, K), over all K shape directions, are
    NumPy arrays.
    Axes at rest: x towards the head, y to the animal's left, z up.
    """

    def __init__(self, model_dir, shape_family_id: int = 1):
        super().__init__()
        model_dir = Path(model_dir)
        try:
            model, family = load_table(model_dir, MODEL_FILE), load_table(model_dir, FAMILY_FILE)
            symmetry = load_table(model_dir, SYMMETRY_FILE)
        except FileNotFoundError as e:
            raise FileNotFoundError(
                f"{e}. The SMAL body is licensed: get it from https://smal.is.tue.mpg.de and put it there (see data/README.md),"
                " or make the embedded body, which needs no licence: python -m synthetic --data_dir data/synthetic."
            ) from None
        keys = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
        require(model, keys, model_dir / MODEL_FILE)
        require(symmetry, (SYMMETRY_FILE,), model_dir / SYMMETRY_FILE)
        symmetry = np.asarray(symmetry[SYMMETRY_FILE]).astype(np.int64).ravel()
        require(family, ("cluster_means", "cluster_cov"), model_dir / FAMILY_FILE)

        template, shapedirs, posedirs, weights = (
            np.asarray(model[k], np.float64) for k in ("v_template", "shapedirs", "posedirs", "weights")
        )
        regressor = model["J_regressor"]
        regressor = np.asarray(regressor.todense() if scipy.sparse.issparse(regressor) else regressor, np.float64)
        means, covariances = (np.asarray(family[k], np.float64) for k in ("cluster_means", "cluster_cov"))
        faces, kintree = (np.asarray(model[k]).astype(np.int64) for k in ("f", "kintree_table"))
        num_verts, num_joints, num_shapes = template.shape[0], weights.shape[-1], shapedirs.shape[-1]
        expected = {
            "v_template": (template.shape, (num_verts, 3)),
            "f": (faces.shape, (len(faces), 3)),
            "weights": (weights.shape, (num_verts, num_joints)),
            "kintree_table": (kintree.shape, (2, num_joints)),
            "shapedirs": (shapedirs.shape, (num_verts, 3, num_shapes)),
            "cluster_means": (means.shape, (len(means), num_shapes)),
            "cluster_cov": (covariances.shape, (len(means), num_shapes, num_shapes)),
            "posedirs": (posedirs.shape, (num_verts, 3, 9 * (num_joints - 1))),
            "J_regressor": (regressor.shape, (num_joints, num_verts)),
            "symIdx": (symmetry.shape, (num_verts,)),
        }
        for key, (found, wanted) in expected.items():
            if found != wanted:
                raise ValueError(f"{key} in {model_dir} has shape {found}, expected {wanted}; the files do not belong together.")
        if num_joints != len(joints.NAMES):
            raise ValueError(f"{model_dir} has {num_joints} joints; SMAL's tree of {len(joints.NAMES)} is expected.")
        if num_shapes < NUM_BETAS:
            raise ValueError(f"{model_dir} has {num_shapes} shape directions; the network needs {NUM_BETAS} or more.")
        if faces.size and not 0 <= faces.min() <= faces.max() < num_verts:
            raise ValueError(f"f in {model_dir} names vertices {faces.min()} to {faces.max()}; the body has {num_verts}.")
        num_families = len(means)
        if not 0 <= shape_family_id < num_families:
            raise ValueError(f"--shape_family_id {shape_family_id}: the body has families 0 to {num_families - 1}.")

        # The root's parent is stored as 2^32 - 1.
        parents = kintree[0].astype(np.int32).astype(np.int64)
        self.levels = lbs.tree_levels(parents.tolist())
        mirror_plane = np.asarray(model.get("mirror_plane_vertices", joints.MIRROR_PLANE_VERTICES))
        landmarks = np.asarray(model.get("landmark_vertices", joints.LANDMARK_VERTICES))
        template = align_template(template, mirror_plane, symmetry)

        def constant(name, array, dtype=torch.float32):
            # The body comes from its own files, never from a checkpoint.
            self.register_buffer(name, torch.as_tensor(np.ascontiguousarray(array)).to(dtype), persistent=False)

        constant("faces", faces, torch.int64)
        constant("parents", np.maximum(parents, 0), torch.int64)
        constant("landmarks", landmarks.astype(np.int64), torch.int64)
        constant("template", template)
        constant("shapedirs", shapedirs.reshape(num_verts * 3, -1).T)  # (K, V*3)
        constant("posedirs", posedirs.reshape(num_verts * 3, -1).T)  # (9*(J-1), V*3)
        self.has_posedirs = bool(posedirs.any())  # the made-up body has none
        constant("J_regressor", regressor)
        constant("weights", weights)
        constant("logscale_mask", joints.logscale_mask(num_joints))  # (6, J, 3)
        # NumPy, in double precision whatever the module is cast to: the shape prior inverts this covariance.
        self.family_mean = means[shape_family_id]
        self.family_cov = covariances[shape_family_id]

    @property
    def num_verts(self) -> int:
        return self.template.shape[0]

    @property
    def num_joints(self) -> int:
        return self.parents.shape[0]

    def forward(self, betas, pose, trans=None, del_v=None, betas_logscale=None) -> SMALOutput:
        """betas (B, n <= K); pose (B, 3*J) axis-angle, joint 0 global; trans (B, 3); del_v (B, V, 3) offsets in the rest pose;
        betas_logscale (B, 6). Lengths in the body's units. Returns SMALOutput."""
        batch, num_verts = betas.shape[0], self.num_verts
        _expect("betas", betas, (batch, min(betas.shape[-1], self.shapedirs.shape[0])))
        _expect("pose", pose, (batch, 3 * self.num_joints))
        _expect("trans", trans, (batch, 3))
        _expect("del_v", del_v, (batch, num_verts, 3))
        _expect("betas_logscale", betas_logscale, (batch, NUM_LOGSCALES))

        shaped = self.template + (betas @ self.shapedirs[: betas.shape[1]]).view(batch, num_verts, 3)  # (B, V, 3)
        if del_v is not None:
            shaped = shaped + del_v
        rest_joints = self._regress(shaped)  # (B, J, 3)
        rotations = lbs.rodrigues(pose.view(batch, -1, 3))  # (B, J, 3, 3)
        posed = shaped
        if self.has_posedirs:
            bend = rotations[:, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)
            posed = shaped + (bend.flatten(1) @ self.posedirs).view(batch, num_verts, 3)
        scales = None
        if betas_logscale is not None:
            scales = (betas_logscale @ self.logscale_mask.flatten(1)).exp().view(batch, -1, 3)  # (B, J, 3)
        transforms = lbs.kinematic_chain(rotations, rest_joints, self.parents, self.levels, scales)
        verts = lbs.skin(posed, transforms, self.weights)  # (B, V, 3)
        if trans is not None:
            verts = verts + trans[:, None]
        return SMALOutput(verts.contiguous(), torch.cat([self._regress(verts), verts[:, self.landmarks]], 1))

    def _regress(self, verts):
        """Joints (B, J, 3) of vertices (B, V, 3), as one product over the batch."""
        rows = verts.mT.reshape(-1, self.num_verts)  # (3B, V)
        return (rows @ self.J_regressor.mT).view(len(verts), 3, -1).mT


def _expect(name, tensor, shape):
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
