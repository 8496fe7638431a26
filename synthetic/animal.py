"""Synthetic animals: breed, shape, pose, coat and a deformation outside the shape space, before a
camera."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from smal_model import NUM_BETAS, SMAL, joints
from smal_model.mesh import adjacency
from util.camera import DISTANCE, FOCAL, HALF_CROP

from .pose import sample_pose
from .shape import BREEDS, sample_betas
from .skeleton import LEGS, rest_joints
from .surface import vertex_normals

CROP_FILL = 1 / 1.2  # the animal's larger side, as a fraction of the crop's
FROM_BEHIND = 0.03  # fraction of images from any side; in the others the animal faces the viewer
COAT_DEPTH = 0.015, 0.085  # of the trunk, body units, least and most
# World (x to the viewer, z up) to camera (x right, y up, z away).
TO_CAMERA = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])


@dataclass
class Animal:
    """One posed dog."""

    breed: str
    verts: np.ndarray  # (V, 3) camera space, body units
    joints: np.ndarray  # (41, 3) camera space, body units
    scale: float  # the camera's
    up: np.ndarray  # (3,) the world's up in camera space
    parameters: dict[str, np.ndarray]  # what the SMAL layer was called with, without batch axis


class Studio:
    """What all images share: the body and fields over its rest pose."""

    def __init__(self, body_dir):
        self.smal = SMAL(body_dir)
        self.rest = self.smal.template.numpy().astype(np.float64)  # (V, 3)
        self.faces = self.smal.faces.numpy()  # (F, 3)
        # The layer centres the template: bring it back to where the skeleton's places are named.
        centred = self.smal.J_regressor.numpy().astype(np.float64) @ self.rest  # (J, 3)
        self.rest += (rest_joints() - centred).mean(0)
        self.rest_normals = vertex_normals(self.rest, self.faces)

    @cached_property
    def shape_space(self) -> np.ndarray:
        """(3 V, n) orthonormal basis of the displacements that the coefficients can express, with
        shifts and turns."""
        rigid = [np.broadcast_to(e, self.rest.shape).ravel() for e in np.eye(3)]
        rigid += [np.cross(e, self.rest).ravel() for e in np.eye(3)]
        directions = self.smal.shapedirs[:NUM_BETAS].numpy().astype(np.float64)
        return np.linalg.qr(np.concatenate([directions, rigid]).T)[0]

    @cached_property
    def thickness(self) -> np.ndarray:
        """(V,) about how far the skin is from the bone it follows."""
        bone = (self.smal.weights @ (self.smal.J_regressor @ self.smal.template)).numpy()  # (V, 3)
        return np.linalg.norm((self.smal.template.numpy() - bone)[:, 1:], axis=1)

    @cached_property
    def long_coat(self) -> np.ndarray:
        """(V, 3) from the skin to the tips of a coat of depth 1: away from the skin, hanging from
        belly, throat and tail, with feathers behind the legs."""
        depth = np.full(self.smal.num_joints, 1.0)
        for leg in LEGS:
            depth[list(leg)] = 1.0, 0.7, 0.35, 0.1
        depth[[joints.HEAD, joints.MOUTH, joints.LEFT_EAR, joints.RIGHT_EAR]] = 0.3, 0.05, 0.4, 0.4
        depth[list(joints.TAIL)] = 0.9
        weights = self.smal.weights.numpy()
        on_leg = weights[:, np.concatenate(LEGS)].sum(1, keepdims=True)
        down, behind = (np.clip(-self.rest_normals[:, [axis]], 0, 1) for axis in (2, 0))
        hangs = (1 - on_leg) * down * (0, 0, -2.5) + on_leg * behind * (-1, 0, -0.7)
        hair = (weights @ depth)[:, None] * (0.8 * self.rest_normals + hangs)
        near = adjacency(self.faces, len(self.rest))
        count = np.asarray(near.sum(1))
        for _ in range(8):  # no steps where one part meets the next
            hair = near @ hair / count
        return hair

    def deformation(self, rng) -> np.ndarray:
        """(V, 3) smooth displacement of the rest pose: soft dents and bulges, lean and heavy parts,
        all outside the shape space, and a coat of some depth, which hardly moves a keypoint."""

        def bumps(count, low, high):
            centre = self.rest[rng.integers(len(self.rest), size=count)]
            width = rng.uniform(low, high, count)
            square = (self.rest**2).sum(1)[:, None] - 2 * self.rest @ centre.T + (centre**2).sum(1)
            return np.exp((-0.5 * square / width**2).astype(np.float32))  # (V, count)

        shift = bumps(14, 0.12, 0.30) @ rng.normal(0, 0.020, (14, 3))
        swell = bumps(16, 0.07, 0.18) @ rng.normal(0, 0.020, 16)
        flesh = np.clip(self.thickness, 0.02, 0.16) / 0.10
        flat = (shift + (swell * flesh)[:, None] * self.rest_normals).ravel()
        outside = (flat - self.shape_space @ (self.shape_space.T @ flat)).reshape(-1, 3)
        return outside + rng.uniform(*COAT_DEPTH) * self.long_coat

    def animals(self, rngs) -> list[Animal]:
        """One posed dog for each generator of random numbers, framed by the camera of the crop."""
        breeds, ups = [], []
        drawn: dict[str, list] = {"betas": [], "pose": [], "del_v": []}
        for rng in rngs:
            breeds.append(list(BREEDS)[rng.integers(len(BREEDS))])
            drawn["betas"].append(sample_betas(rng, breeds[-1]))
            pose = sample_pose(rng, 1)[0]
            world = draw_view(rng, lying_down=abs(pose[0]) > 1)
            turn = world @ Rotation.from_rotvec(pose[:3]).as_matrix()
            pose[:3] = Rotation.from_matrix(turn).as_rotvec()
            drawn["pose"].append(pose)
            ups.append(world[:, 2])
            drawn["del_v"].append(self.deformation(rng))
        depth = np.array([1 + np.clip(rng.normal(0, 0.25), -0.6, 0.6) for rng in rngs])  # (B,)
        centred = np.array([rng.uniform(-0.04, 0.04, 2) for rng in rngs])  # (B, 2) half crops
        filled = np.array([CROP_FILL * rng.uniform(0.95, 1.04) for rng in rngs])  # (B,)

        parameters = {k: torch.tensor(np.stack(v), dtype=torch.float32) for k, v in drawn.items()}
        with torch.inference_mode():
            posed = self.smal(**parameters).verts.numpy().astype(np.float64)  # about the origin
            flat = posed[..., :2] / (DISTANCE + depth[:, None, None] + posed[..., 2:])  # (B, V, 2)
            low, high = flat.min(1), flat.max(1)
            focal = 2 * filled * HALF_CROP / (high - low).max(1)
            shift = centred * HALF_CROP / focal[:, None] - (low + high) / 2
            trans = np.column_stack([shift * (DISTANCE + depth)[:, None], depth])
            parameters["trans"] = torch.tensor(trans, dtype=torch.float32)
            out = self.smal(**parameters)
        return [
            Animal(
                breed=breeds[i],
                verts=out.verts[i].numpy(),
                joints=out.joints[i].numpy(),
                scale=float(np.float32(focal[i] / FOCAL - 1)),
                up=ups[i],
                parameters={k: v[i].numpy() for k, v in parameters.items()},
            )
            for i in range(len(breeds))
        ]


def draw_view(rng, lying_down: bool) -> np.ndarray:
    """(3, 3) the world's axes (columns: the animal's front, its left, up) in camera space."""
    raised = rng.uniform(0.15, 0.9) if lying_down else np.clip(rng.normal(0.16, 0.16), -0.12, 0.7)
    roll = np.clip(rng.normal(0, 0.06), -0.15, 0.15)
    view = Rotation.from_euler("xyz", [roll, raised, 0]).as_matrix()
    if rng.random() < FROM_BEHIND:
        turned = rng.uniform(-np.pi, np.pi)
    else:
        turned = np.clip(rng.normal(0, 0.7), -1.5, 1.5)
    return TO_CAMERA @ (view @ Rotation.from_euler("z", turned).as_matrix())
