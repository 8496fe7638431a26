"""The SMAL animal model (Zuffi et al., 3D Menagerie, CVPR 2017) as a differentiable layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from util.errors import InputError

from . import joints, lbs
from .body_files import BodyData, load_body

NUM_LOGSCALES = len(joints.LOGSCALES)


@dataclass
class SMALOutput:
    """A posed body: the regressed joints are followed by the six `joints.LANDMARK_VERTICES`."""

    verts: torch.Tensor  # (B, V, 3)
    joints: torch.Tensor  # (B, J + 6, 3)


def align_template(template, mirror_plane, symmetry) -> np.ndarray:
    """Centres a template and makes it mirror-symmetric about y = 0.

    One scalar mean is taken off all numbers; then the right half (y < 0) is mirrored onto the left.

    Args:
        template: (V, 3) vertices.
        mirror_plane: indices of the vertices on the plane.
        symmetry: (V,) index of each vertex's mirror image.

    Returns:
        (V, 3) float64.
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

    Buffers: faces (F, 3), parents (J,), template (V, 3), shape and pose directions, joint
    regressor, skinning weights; none is stored in a checkpoint, the body comes from its files.
    `family_mean` (K,) and `family_cov` (K, K), over all K shape directions, are NumPy arrays;
    `source` says where the body comes from.

    Args:
        model_dir: a folder for `load_body`, or a `BodyData`; every size comes from it.
        shape_family_id: row of the families' means and covariances (1 is dogs).

    Raises:
        InputError: the files cannot be read, or there is no such family.
    """

    faces: torch.Tensor
    parents: torch.Tensor
    ancestors: torch.Tensor
    landmarks: torch.Tensor
    template: torch.Tensor
    shapedirs: torch.Tensor
    posedirs: torch.Tensor
    J_regressor: torch.Tensor
    weights: torch.Tensor
    logscale_mask: torch.Tensor

    def __init__(self, model_dir, shape_family_id: int = 1):
        super().__init__()
        body = model_dir if isinstance(model_dir, BodyData) else load_body(model_dir)
        families = len(body.family_means)
        if not 0 <= shape_family_id < families:
            raise InputError(
                f"shape_family_id is {shape_family_id}; {body.source} has families 0 to"
                f" {families - 1}."
            )
        num_verts, num_joints = body.weights.shape
        self.has_posedirs = bool(body.posedirs.any())  # the synthetic body has none
        constants = {
            "faces": body.faces,
            "parents": np.maximum(body.parents, 0),
            "ancestors": lbs.ancestors(body.parents.tolist()).numpy(),
            "landmarks": body.landmarks,
            "template": align_template(body.template, body.mirror_plane, body.symmetry),
            "shapedirs": body.shapedirs.reshape(num_verts * 3, -1).T,  # (K, V*3)
            "posedirs": body.posedirs.reshape(num_verts * 3, -1).T,  # (9*(J-1), V*3)
            "J_regressor": body.J_regressor,
            "weights": body.weights,
            "logscale_mask": joints.logscale_mask(num_joints),  # (6, J, 3)
        }
        for name, array in constants.items():
            dtype = torch.float32 if array.dtype.kind == "f" else torch.int64
            tensor = torch.as_tensor(np.ascontiguousarray(array)).to(dtype)
            self.register_buffer(name, tensor, persistent=False)
        self.source = body.source
        # NumPy, in double precision whatever the module is cast to: the shape prior inverts it.
        self.family_mean = body.family_means[shape_family_id]
        self.family_cov = body.family_covs[shape_family_id]

    @property
    def num_verts(self) -> int:
        return self.template.shape[0]

    @property
    def num_joints(self) -> int:
        return self.parents.shape[0]

    def forward(self, betas, pose, trans=None, del_v=None, betas_logscale=None) -> SMALOutput:
        """Poses a batch of bodies.

        Args:
            betas: (B, n <= K) shape coefficients.
            pose: (B, 3*J) axis-angle in radians; joint 0 is the global rotation.
            trans: (B, 3) translation in the body's units, or None.
            del_v: (B, V, 3) offsets of the vertices in the rest pose, or None.
            betas_logscale: (B, 6) log-scales of limbs (`joints.LOGSCALES`), or None.
        """
        batch, num_verts = betas.shape[0], self.num_verts
        _expect("betas", betas, (batch, min(betas.shape[-1], self.shapedirs.shape[0])))
        _expect("pose", pose, (batch, 3 * self.num_joints))
        _expect("trans", trans, (batch, 3))
        _expect("del_v", del_v, (batch, num_verts, 3))
        _expect("betas_logscale", betas_logscale, (batch, NUM_LOGSCALES))

        offsets = (betas @ self.shapedirs[: betas.shape[1]]).view(batch, num_verts, 3)
        shaped = self.template + offsets  # (B, V, 3)
        if del_v is not None:
            shaped = shaped + del_v
        rest_joints = self._regress(shaped)  # (B, J, 3)
        rotations = lbs.rodrigues(pose.view(batch, pose.shape[1] // 3, 3))  # (B, J, 3, 3)
        posed = shaped
        if self.has_posedirs:
            posed = shaped + (lbs.bend(rotations) @ self.posedirs).view(batch, num_verts, 3)
        transforms = self.transforms(rotations, rest_joints, betas_logscale)
        verts = lbs.skin(posed, transforms, self.weights)  # (B, V, 3)
        if trans is not None:
            verts = verts + trans[:, None]
        all_joints = torch.cat([self._regress(verts), verts[:, self.landmarks]], 1)
        return SMALOutput(verts.contiguous(), all_joints)

    def transforms(self, rotations, rest_joints, betas_logscale=None) -> torch.Tensor:
        """(B, J, 3, 4) of `lbs.kinematic_chain`, limbs scaled by betas_logscale (B, 6) or None."""
        scales = None
        if betas_logscale is not None:
            logscales = betas_logscale @ self.logscale_mask.flatten(1)  # (B, J*3)
            scales = logscales.exp().unflatten(1, (-1, 3))  # (B, J, 3)
        return lbs.kinematic_chain(rotations, rest_joints, self.ancestors, scales)

    def _regress(self, verts):
        """Joints (B, J, 3) of vertices (B, V, 3), as one product over the batch."""
        rows = verts.mT.reshape(-1, self.num_verts)  # (3B, V)
        return (rows @ self.J_regressor.mT).view(len(verts), 3, self.J_regressor.shape[0]).mT


def _expect(name, tensor, shape):
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
