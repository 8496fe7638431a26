"""Synthetic animals: breed, shape, pose, coat and a deformation outside the shape space, before a
camera."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from smal_model import NUM_BETAS, SMAL, joints
from smal_model.mesh import adjacency
from util.camera import DISTANCE, FOCAL, HALF_CROP, project

from .collision import Capsules
from .fur import strand_textures
from .pose import sample_pose
from .shape import BREEDS, sample_betas
from .skeleton import LEGS, rest_joints
from .surface import corner_sums, vertex_normals

CROP_FILL = 1 / 1.2  # the animal's larger side, as a fraction of the crop's
FROM_BEHIND = 0.03  # fraction of images from any side; in the others the animal faces the viewer
COAT_DEPTH = 0.015, 0.085  # of the trunk, body units, least and most
# World (x to the viewer, z up) to camera (x right, y up, z away).
TO_CAMERA = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])


@dataclass(frozen=True)
class Fur:
    """What a coat is like, beside its colours."""

    kind: str = "short"  # a key of `fur.KINDS`
    length: float = 0.0  # from skin to tips on the trunk, body units


@dataclass
class Draft:
    """What is drawn for one dog before it is posed."""

    breed: str
    betas: np.ndarray  # (20,)
    pose: np.ndarray  # (105,) axis-angle, the first three in camera space
    del_v: np.ndarray  # (V, 3) displacement of the rest pose, body units
    up: np.ndarray  # (3,) the world's up in camera space
    depth: float  # of the body's origin, body units beyond the camera's DISTANCE
    centre: np.ndarray  # (2,) of the animal's box in the crop, half crops
    fill: float  # the box's larger side, as a fraction of the crop's
    fur: Fur = Fur()


@dataclass
class Animal:
    """One posed dog."""

    breed: str
    verts: np.ndarray  # (V, 3) camera space, body units
    joints: np.ndarray  # (41, 3) camera space, body units
    plane: np.ndarray  # (V, 3) the vertices in the crop's image plane, and their depth
    joints_plane: np.ndarray  # (41, 3) the same of the joints
    scale: float  # the camera's
    up: np.ndarray  # (3,) the world's up in camera space
    parameters: dict[str, np.ndarray]  # what the SMAL layer was called with, without batch axis
    fur: Fur = Fur()

    def project(self, points) -> np.ndarray:
        """Points (N, 3) in camera space to the image plane of the crop and depth (N, 3)."""
        points = torch.from_numpy(np.asarray(points, np.float32))[None]
        with torch.inference_mode():
            return project(points, torch.tensor([[self.scale]]))[0].numpy()


class Studio:
    """What all images share: the body and fields over its rest pose."""

    def __init__(self, body_dir):
        self.smal = SMAL(body_dir)
        self.rest = self.smal.template.numpy().astype(np.float64)  # (V, 3)
        self.faces = self.smal.faces.numpy()  # (F, 3)
        # The layer centres the template: bring it back to where the skeleton's places are named.
        centred = self.smal.J_regressor.numpy().astype(np.float64) @ self.rest  # (J, 3)
        self.rest += (rest_joints() - centred).mean(0)
        self.axes = np.ascontiguousarray(self.rest.T, np.float32)  # (3, V)
        self.corner_sums = corner_sums(self.faces, len(self.rest)).astype(np.float32)
        self.rest_normals = vertex_normals(self.axes.T, self.faces, self.corner_sums)
        self._followers: dict[tuple, np.ndarray] = {}

    @cached_property
    def shape_space(self) -> np.ndarray:
        """(n, 3 V) orthonormal basis of the displacements that the coefficients can express, with
        shifts and turns."""
        rigid = [np.broadcast_to(e, self.rest.shape).ravel() for e in np.eye(3)]
        rigid += [np.cross(e, self.rest).ravel() for e in np.eye(3)]
        directions = self.smal.shapedirs[:NUM_BETAS].numpy().astype(np.float64)
        basis = np.linalg.qr(np.concatenate([directions, rigid]).T)[0]
        return np.ascontiguousarray(basis.T, np.float32)

    @cached_property
    def capsules(self) -> Capsules:
        """The bones, to find limbs that pass through the body."""
        directions = self.smal.shapedirs.numpy().astype(np.float64)
        regressor = self.smal.J_regressor.numpy().astype(np.float64)
        return Capsules(self.rest, regressor, directions.reshape(len(directions), -1, 3))

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

    @cached_property
    def coat_length(self) -> np.ndarray:
        """(V,) from the skin to the tips of a coat of depth 1."""
        return np.linalg.norm(self.long_coat, axis=1)

    @cached_property
    def other_shapes(self) -> np.ndarray:
        """(K - 20, 3 V) shape directions that the network's coefficients leave out."""
        return self.smal.shapedirs[NUM_BETAS:].numpy()

    def followers(self, *joints: int) -> np.ndarray:
        """(V,) how much each vertex follows any of some joints, from 0 to 1."""
        if joints not in self._followers:
            self._followers[joints] = self.smal.weights.numpy()[:, list(joints)].sum(1)
        return self._followers[joints]

    @cached_property
    def flow(self) -> np.ndarray:
        """(V, 2) along and across the fur's strands: backwards on the trunk, down on the legs."""
        x, y, z = self.axes
        legs = self.smal.weights.numpy()[:, np.concatenate(LEGS)].sum(1)
        side = 0.35 * np.sign(y)
        along = (1 - legs) * (0.25 * np.abs(y) - x) - legs * z
        across = (1 - legs) * (z + 0.8 * np.abs(y) + side) + legs * (x + 0.9 * y)
        return np.stack([along, across], 1)

    @cached_property
    def strands(self) -> dict[str, np.ndarray]:
        """Textures of fur (`fur.strand_textures`)."""
        return strand_textures()

    def dents(self, rng) -> np.ndarray:
        """(V, 3) smooth displacement of the rest pose, outside the shape space: soft dents and
        bulges, lean and heavy parts."""

        rest = self.axes  # (3, V)
        square = (rest * rest).sum(0)

        def bumps(count, low, high):
            centre = rest[:, rng.integers(rest.shape[1], size=count)]  # (3, count)
            sharp = (-0.5 / rng.uniform(low, high, count) ** 2).astype(np.float32)
            to_origin = square + (centre * centre).sum(0)[:, None]  # (count, V)
            to_origin -= (2 * centre.T) @ rest
            return cv2.exp(sharp[:, None] * to_origin)

        lumps = bumps(14, 0.12, 0.30)
        shift = rng.normal(0, 0.020, (3, 14)).astype(np.float32) @ lumps  # (3, V)
        lumps = bumps(16, 0.07, 0.18)
        swell = rng.normal(0, 0.020, 16).astype(np.float32) @ lumps
        flesh = np.clip(self.thickness, 0.02, 0.16) / 0.10
        flat = (shift + (swell * flesh) * self.rest_normals.T).T.ravel()
        return (flat - (self.shape_space @ flat) @ self.shape_space).reshape(-1, 3)

    def place(self, drafts: list[Draft], rounds: int = 1) -> list[Animal]:
        """Poses drafts and frames each by the camera of the crop.

        Args:
            drafts: B of them.
            rounds: steps towards the frame; one is enough far from the camera.

        Returns:
            B animals.
        """
        depth, centre, fill = (
            np.array([getattr(d, name) for d in drafts]) for name in ("depth", "centre", "fill")
        )  # (B,), (B, 2), (B,)
        parameters = {
            name: torch.tensor(np.stack([getattr(d, name) for d in drafts]), dtype=torch.float32)
            for name in ("betas", "pose", "del_v")
        }
        away = (DISTANCE + depth)[:, None]  # (B, 1)
        with torch.inference_mode():
            posed = self.smal(**parameters)  # about the origin
            across = np.ascontiguousarray(posed.verts.mT.numpy(), np.float64)  # (B, 3, V)
            shift = np.zeros((len(drafts), 2))
            for _ in range(rounds):
                plane = (across[:, :2] + shift[..., None]) / (away[..., None] + across[:, 2:])
                low, high = plane.min(2), plane.max(2)  # (B, 2)
                focal = 2 * fill * HALF_CROP / (high - low).max(1)
                shift += (centre * HALF_CROP / focal[:, None] - (low + high) / 2) * away
            parameters["trans"] = torch.tensor(np.column_stack([shift, depth]), dtype=torch.float32)
            scale = torch.tensor(focal / FOCAL - 1, dtype=torch.float32)
            points = torch.cat([posed.verts, posed.joints], 1) + parameters["trans"][:, None]
            ends = [posed.verts.shape[1]]
            verts, joints = np.split(points.numpy(), ends, 1)
            plane, joints_plane = np.split(project(points, scale[:, None]).numpy(), ends, 1)
        return [
            Animal(
                breed=draft.breed,
                verts=verts[i],
                joints=joints[i],
                plane=plane[i],
                joints_plane=joints_plane[i],
                scale=float(scale[i]),
                up=draft.up,
                parameters={k: v[i].numpy() for k, v in parameters.items()},
                fur=draft.fur,
            )
            for i, draft in enumerate(drafts)
        ]


def turned(world, tilt) -> np.ndarray:
    """(3,) axis-angle in camera space of what is tilted by axis-angles (3,) in the world's axes;
    world (3, 3): these axes, as columns, in camera space."""
    return cv2.Rodrigues(world @ cv2.Rodrigues(tilt)[0])[0].ravel()


def draw_plain(rng, studio: Studio) -> Draft:
    """A dog of the plain preset: eight breeds, six kinds of pose, seen from the front half."""
    breed = list(BREEDS)[rng.integers(len(BREEDS))]
    betas = sample_betas(rng, breed)
    pose = sample_pose(rng, 1)[0]
    world = draw_view(rng, lying_down=abs(pose[0]) > 1)
    pose[:3] = turned(world, pose[:3])
    dents = studio.dents(rng)
    del_v = dents + rng.uniform(*COAT_DEPTH) * studio.long_coat
    depth = 1 + np.clip(rng.normal(0, 0.25), -0.6, 0.6)
    centre = rng.uniform(-0.04, 0.04, 2)
    fill = CROP_FILL * rng.uniform(0.95, 1.04)
    return Draft(breed, betas, pose, del_v, world[:, 2], depth, centre, fill)


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
