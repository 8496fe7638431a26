"""Pictures of made-up dogs with everything known about them, in the layouts of the real data sets.

    python -m synthetic --data_dir data/synthetic --num_images 5000 --seed 0

writes the body, its priors and its mesh hierarchy (`smal_model.quadruped`), `StanfordExtra_v12/` with num_images photographs and
`animal_pose/` with a twelfth as many, as SPLITS says. Beside `Images/` lies `Truth/` with the same paths: one `.npz` a picture.

Each picture starts from numbers drawn for its own position in the list, so the number of workers changes nothing, and the
same options give the same bytes. A picture is made so: draw breed, shape, pose, a coat and a smooth deformation that
the shape space cannot express; pose the body through the SMAL layer; choose the crop's camera (`util.camera`); lay the crop's
square into a larger photograph; render body and shadow; paint background and things in front; blur, noise, JPEG.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from render import rasterize
from smal_model import NUM_BETAS, SMAL, joints
from smal_model.mesh import adjacency
from .body import BREEDS, EYE, NOSE, rest_joints, sample_betas, sample_pose, write_quadruped
from util.camera import DISTANCE, FOCAL, HALF_CROP, project

SPLITS = {"train": 0.945, "val": 0.015, "test": 0.04}
ANIMAL_POSE_SHARE = 12  # one picture for Animal Pose to so many for StanfordExtra
UNLABELLED_IN_ANIMAL_POSE = (13, 17, 18, 19)
BATCH = 16  # pictures a worker makes at a time
SUPERSAMPLE = 2
SETTINGS_FILE = "synthetic.json"
VERSION = 6  # of the pictures: raise it with every change of them
CROP_FILL = 1 / 1.2  # the animal's larger side, as a share of the crop's
FROM_BEHIND = 0.03  # share of pictures from any side; in the others the animal is turned towards the photographer
COAT_DEPTH = 0.015, 0.085  # of the trunk, body units, least and most
HIDDEN_BEHIND = 0.29  # a joint this far (body units) behind the nearest hair is hidden by the animal itself
TO_CAMERA = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])  # world (x to the viewer, z up) to camera (x right, y up, z away)


# ---------------------------------------------------------------- the animal
@dataclass
class Animal:
    """One posed dog. verts (V, 3), joints (41, 3) in camera space; scale: the camera's; up (3,): the world's up in camera space;
    parameters: what the SMAL layer was called with, without the batch axis."""

    breed: str
    verts: np.ndarray
    joints: np.ndarray
    scale: float
    up: np.ndarray
    parameters: dict


class Studio:
    """What all pictures share: the body and fields over its rest pose."""

    def __init__(self, body_dir):
        self.smal = SMAL(body_dir)
        self.rest = self.smal.template.numpy().astype(np.float64)  # (V, 3)
        self.faces = self.smal.faces.numpy()  # (F, 3)
        # The layer centres the template: bring the rest pose back to where the quadruped's places are named.
        self.rest += (rest_joints() - self.smal.J_regressor.numpy().astype(np.float64) @ self.rest).mean(0)
        self.rest_normals = vertex_normals(self.rest, self.faces)

    @cached_property
    def shape_space(self) -> np.ndarray:
        """(3 V, n) orthonormal basis of the displacements that the coefficients can express, with shifts and turns."""
        rigid = [np.broadcast_to(e, self.rest.shape).ravel() for e in np.eye(3)]
        rigid += [np.cross(e, self.rest).ravel() for e in np.eye(3)]
        basis = np.concatenate([self.smal.shapedirs[:NUM_BETAS].numpy().astype(np.float64), rigid]).T
        return np.linalg.qr(basis)[0]

    def deformation(self, rng) -> np.ndarray:
        """(V, 3) smooth displacement of the rest pose: soft dents and bulges, lean and heavy parts, all outside the shape
        space, and a coat of some depth over the body, which hardly moves a keypoint."""

        def bumps(count, low, high):
            centre = self.rest[rng.integers(len(self.rest), size=count)]
            width = rng.uniform(low, high, count)
            square = (self.rest**2).sum(1)[:, None] - 2 * self.rest @ centre.T + (centre**2).sum(1)  # (V, count)
            return np.exp((-0.5 * square / width**2).astype(np.float32))

        shift = bumps(14, 0.12, 0.30) @ rng.normal(0, 0.020, (14, 3))
        swell = bumps(16, 0.07, 0.18) @ rng.normal(0, 0.020, 16)
        flesh = np.clip(self.thickness, 0.02, 0.16) / 0.10
        moved = shift + (swell * flesh)[:, None] * self.rest_normals
        flat = moved.ravel()
        outside = (flat - self.shape_space @ (self.shape_space.T @ flat)).reshape(-1, 3)
        return outside + rng.uniform(*COAT_DEPTH) * self.long_coat

    @cached_property
    def long_coat(self) -> np.ndarray:
        """(V, 3) from the skin to the tips of a coat of depth 1: away from the skin, hanging from belly, throat and tail, with
        feathers behind the legs."""
        legs = (joints.FRONT_LEFT_LEG, joints.FRONT_RIGHT_LEG, joints.BACK_LEFT_LEG, joints.BACK_RIGHT_LEG)
        share = np.full(self.smal.num_joints, 1.0)
        for leg in legs:
            share[list(leg)] = 1.0, 0.7, 0.35, 0.1
        share[[joints.HEAD, joints.MOUTH, joints.LEFT_EAR, joints.RIGHT_EAR]] = 0.3, 0.05, 0.4, 0.4
        share[list(joints.TAIL)] = 0.9
        weights = self.smal.weights.numpy()
        on_leg = weights[:, np.concatenate(legs)].sum(1, keepdims=True)
        down, behind = np.clip(-self.rest_normals[:, [2]], 0, 1), np.clip(-self.rest_normals[:, [0]], 0, 1)
        hangs = (1 - on_leg) * down * (0, 0, -2.5) + on_leg * behind * (-1, 0, -0.7)
        hair = (weights @ share)[:, None] * (0.8 * self.rest_normals + hangs)
        near = adjacency(self.faces, len(self.rest))
        count = np.asarray(near.sum(1))
        for _ in range(8):  # no steps where one part meets the next
            hair = near @ hair / count
        return hair

    @cached_property
    def thickness(self) -> np.ndarray:
        """(V,) about how far the skin is from the bone it follows."""
        bone = (self.smal.weights @ (self.smal.J_regressor @ self.smal.template)).numpy()  # (V, 3)
        return np.linalg.norm((self.smal.template.numpy() - bone)[:, 1:], axis=1)

    def animals(self, rngs) -> list[Animal]:
        """One drawn and posed dog for each generator, framed by the camera of the crop."""
        breeds, betas, poses, ups, shapes = [], [], [], [], []
        for rng in rngs:
            breeds.append(list(BREEDS)[rng.integers(len(BREEDS))])
            betas.append(sample_betas(rng, breeds[-1]))
            pose = sample_pose(rng, 1)[0]
            lying_down = abs(pose[0]) > 1
            raised = rng.uniform(0.15, 0.9) if lying_down else np.clip(rng.normal(0.16, 0.16), -0.12, 0.7)
            view = Rotation.from_euler("xyz", [np.clip(rng.normal(0, 0.06), -0.15, 0.15), raised, 0])
            turned = rng.uniform(-np.pi, np.pi) if rng.random() < FROM_BEHIND else np.clip(rng.normal(0, 0.7), -1.5, 1.5)
            world = TO_CAMERA @ (view.as_matrix() @ Rotation.from_euler("z", turned).as_matrix())
            pose[:3] = Rotation.from_matrix(world @ Rotation.from_rotvec(pose[:3]).as_matrix()).as_rotvec()
            poses.append(pose)
            ups.append(world[:, 2])
            shapes.append(self.deformation(rng))
        depth = np.array([1 + np.clip(rng.normal(0, 0.25), -0.6, 0.6) for rng in rngs])
        centred = np.array([rng.uniform(-0.04, 0.04, 2) for rng in rngs])
        filled = np.array([CROP_FILL * rng.uniform(0.95, 1.04) for rng in rngs])

        parameters = {"betas": betas, "pose": poses, "del_v": shapes}
        parameters = {k: torch.tensor(np.stack(v), dtype=torch.float32) for k, v in parameters.items()}
        with torch.inference_mode():
            posed = self.smal(**parameters).verts.numpy().astype(np.float64)  # (B, V, 3) about the origin
            flat = posed[..., :2] / (DISTANCE + depth[:, None, None] + posed[..., 2:])  # (B, V, 2)
            low, high = flat.min(1), flat.max(1)
            focal = 2 * filled * HALF_CROP / (high - low).max(1)
            shift = (centred * HALF_CROP / focal[:, None] - (low + high) / 2) * (DISTANCE + depth)[:, None]
            parameters["trans"] = torch.tensor(np.column_stack([shift, depth]), dtype=torch.float32)
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


def vertex_normals(verts, faces) -> np.ndarray:
    """(V, 3) outward unit normals of a mesh, weighted by area."""
    corners = verts[faces]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = np.stack([np.bincount(faces.ravel(), np.repeat(face[:, k], 3), len(verts)) for k in range(3)], 1)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- the photograph's frame
@dataclass
class Frame:
    """Where the crop's square lies in the photograph: its left top corner (x, y) and its side, in pixels."""

    width: int
    height: int
    left: float
    top: float
    side: float

    def to_photo(self, plane) -> np.ndarray:
        """Crop plane (N, 2 or more: x right, y up, in [-1, 1]) to the photograph (N, 2): x, y, whole at pixel edges."""
        return np.stack([self.left + (plane[:, 0] + 1) / 2 * self.side, self.top + (1 - plane[:, 1]) / 2 * self.side], 1)


def photo_plane(xy, depth, width, height) -> np.ndarray:
    """Places (N, 2) x, y in pixels (whole at edges) and depths (N,) to the plane (N, 3) that `render` takes."""
    return np.stack([2 * xy[:, 0] / width - 1, 1 - 2 * xy[:, 1] / height, depth], 1).astype(np.float32)


def choose_frame(rng, plane) -> Frame:
    """A photograph of odd size around the animal (crop plane, (V, 3)); now and then its edge cuts a part of the animal off."""
    side = rng.uniform(150, 250)
    box = Frame(0, 0, 0.0, 0.0, side).to_photo(plane)
    low, high = box.min(0), box.max(0)
    margin = rng.uniform(0.03, 0.55, 4) * rng.uniform(0.3, 1.0) * (high - low).max()  # left, top, right, bottom
    if rng.random() < 0.12:
        margin[rng.integers(4)] = -rng.uniform(0.04, 0.16) * (high - low).max()
    width, height = np.maximum(np.round(high - low + margin[:2] + margin[2:]), 64).astype(int)
    return Frame(int(width), int(height), float(margin[0] - low[0]), float(margin[1] - low[1]), float(side))


# ---------------------------------------------------------------- paint
def noise(rng, height, width, cells, octaves=3) -> np.ndarray:
    """(H, W) smooth random picture, mean about 0, deviation about 1; `cells` lumps along the longer side, then finer ones."""
    out, weight = np.zeros((height, width), np.float32), 1.0
    longer = max(height, width)
    for _ in range(octaves):
        size = [max(2, min(n, int(np.ceil(cells * n / longer)) + 2)) for n in (height, width)]
        coarse = rng.standard_normal(size, dtype=np.float32)
        out += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.55
    return out * 1.2


def mix(a, b, t):
    """a where t is 0, b where it is 1; colours (3,) or (..., 3), t (...)."""
    t = np.asarray(t, np.float32)[..., None]
    return a + t * (np.asarray(b, np.float32) - a)


def step(x, soft):
    """0 below -soft, 1 above soft, smooth between."""
    t = np.clip(x / (2 * soft) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def colour(rng, low=(0.1, 0.1, 0.1), high=(0.9, 0.9, 0.9), grey=0.5) -> np.ndarray:
    """(3,) random colour between two, drawn towards grey by 0...1."""
    c = rng.uniform(low, high)
    return (c + grey * rng.random() * (c.mean() - c)).astype(np.float32)


FUR = {
    "black": (0.07, 0.065, 0.065), "chocolate": (0.23, 0.14, 0.09), "chestnut": (0.42, 0.22, 0.11), "tan": (0.66, 0.45, 0.25),
    "golden": (0.80, 0.60, 0.34), "cream": (0.88, 0.80, 0.66), "white": (0.92, 0.91, 0.88), "grey": (0.42, 0.42, 0.44),
    "blue": (0.28, 0.31, 0.35), "sable": (0.50, 0.36, 0.24),
}  # fmt: skip
DARK, LIGHT = ("black", "chocolate", "chestnut", "grey", "blue"), ("tan", "golden", "cream", "white")


def fur(rng, names) -> np.ndarray:
    """(3,) one of the named colours, a little varied."""
    return np.clip(np.array(FUR[names[rng.integers(len(names))]]) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.015, 3), 0.03, 0.95)


def waves(rng, points, length, count=18) -> np.ndarray:
    """(N,) smooth random field over space with lumps of about `length`, deviation 1."""
    k = rng.standard_normal((3, count)) / length * 1.6
    return np.cos((points @ k + rng.uniform(0, 2 * np.pi, count)).astype(np.float32)).sum(1) * np.sqrt(2 / count)


def coat(rng, studio):
    """A coat as (base colour (3,), layers): each layer is (score (V,), softness, colour (3,)) and covers where its score > 0."""
    p = studio.rest
    x, y, z = p.T
    weights = studio.smal.weights.numpy()
    head = weights[:, [joints.HEAD, joints.MOUTH]].sum(1)
    ears = weights[:, [joints.LEFT_EAR, joints.RIGHT_EAR]].sum(1)
    tail = weights[:, list(joints.TAIL)].sum(1)
    muzzle = np.minimum(x - 0.77, head - 0.5)
    back = z - 0.10 - 0.10 * np.clip((x - 0.30) / 0.3, 0, 1.5)  # above 0: the upper half
    large, small = waves(rng, p, 0.28), waves(rng, p, 0.10)
    layers = []

    def layer(score, soft, c):
        layers.append((score, soft, np.asarray(c)))

    pattern = rng.choice(
        ["plain", "saddle", "patches", "brindle", "points", "spots", "merle"], p=[0.24, 0.18, 0.20, 0.10, 0.12, 0.08, 0.08]
    )
    if pattern == "plain":
        base = fur(rng, list(FUR))
        layer(-back - 0.08 + 0.03 * large, 0.12, mix(base, fur(rng, LIGHT), rng.uniform(0, 0.5)))
    elif pattern == "saddle":
        base = fur(rng, LIGHT)
        layer(back - rng.uniform(-0.05, 0.05) + 0.05 * large - 0.3 * head, rng.uniform(0.02, 0.06), fur(rng, DARK))
    elif pattern == "patches":
        base = fur(rng, ("white", "cream", "white"))
        layer(large - rng.uniform(-0.2, 0.7), 0.08, fur(rng, list(DARK) + ["tan", "golden"]))
    elif pattern == "brindle":
        base = fur(rng, ("tan", "sable", "golden", "chestnut"))
        stripe = np.sin(x * rng.uniform(40, 70) + 2.2 * small + 8 * back)
        layer(stripe - rng.uniform(-0.1, 0.4), 0.5, fur(rng, ("black", "chocolate")))
    elif pattern == "points":
        base = fur(rng, ("black", "chocolate", "blue", "black"))
        light = fur(rng, ("tan", "golden", "chestnut"))
        layer(-z - rng.uniform(0.2, 0.34) + 0.03 * large, 0.03, light)
        layer(muzzle, 0.02, light)
        brow = np.sqrt((x - 0.750) ** 2 + (np.abs(y) - 0.045) ** 2 + (z - 0.428) ** 2)
        layer(0.020 - brow, 0.006, light)
        layer(np.minimum(x - 0.36, 0.12 - z) - 0.01, 0.03, light)
    elif pattern == "spots":
        base = fur(rng, ("white", "cream"))
        layer(small - rng.uniform(0.7, 1.1), 0.1, fur(rng, ("black", "chocolate", "chestnut")))
    else:
        base = fur(rng, ("grey", "blue", "sable"))
        layer(small + 0.6 * large - 0.5, 0.3, fur(rng, ("black", "chocolate")))
        layer(-small - 1.2, 0.3, fur(rng, ("cream", "white")))
    white = fur(rng, ("white", "cream"))
    if rng.random() < 0.3:  # socks
        layer(-z - rng.uniform(0.36, 0.47) + 0.015 * large, 0.012, white)
    if rng.random() < 0.3:  # chest
        layer(np.minimum(x - 0.27, 0.08 - z) + 0.02 * large - 0.03, 0.03, white)
    if rng.random() < 0.2:  # blaze
        middle = rng.uniform(0.015, 0.035) - np.abs(y) + 0.004 * large
        layer(middle - 2 * np.clip(0.62 - x, 0, 1) - np.clip(0.34 - z, 0, 1), 0.006, white)
    if rng.random() < 0.25:  # dark or light muzzle
        layer(muzzle + 0.01 * large, 0.02, fur(rng, ("black", "chocolate", "white")))
    if rng.random() < 0.35:  # ears
        layer(ears - 0.5, 0.15, fur(rng, ("black", "chocolate", "chestnut", "tan", "sable")))
    if rng.random() < 0.2:  # tip of the tail
        layer(np.minimum(-x - rng.uniform(0.85, 1.0), tail - 0.5), 0.03, white)
    if rng.random() < 0.22:  # collar
        along = (p - (rng.uniform(0.47, 0.51), 0, 0.28)) @ np.array([0.82, 0, 0.57])
        layer(0.018 - np.abs(along) - (weights[:, joints.NECK] + head < 0.4), 0.002, rng.uniform(0.05, 0.9, 3))
    if rng.random() < 0.5:  # inside of the ears, which opens to the front
        forward = studio.rest_normals @ np.array([0.8, 0, -0.2])
        layer(np.where(ears > 0.6, forward - 0.35, -1), 0.15, mix(base, (0.75, 0.52, 0.47), 0.6))
    mouth = 0.287 + 0.10 * np.clip(0.80 - x, 0, 1)
    layer(0.008 - np.abs(z - mouth) - 3 * np.clip(0.735 - x, 0, 1) - (head < 0.5), 0.005, base * 0.25)
    for side in (1, -1):
        layer(0.018 - np.linalg.norm(p - np.array(EYE) * (1, side, 1), axis=1), 0.004, fur(rng, ("black", "chocolate")) * 0.4)
    nose = ((p - (np.array(NOSE) + (-0.018, 0, 0.004))) / (0.030, 0.031, 0.024)) ** 2
    layer(1 - np.sqrt(nose.sum(1)), 0.12, np.array((0.06, 0.05, 0.05)))
    return base, layers


# ---------------------------------------------------------------- light
@dataclass
class Light:
    """Direction to the sun (3,) in camera space and the colours (3,) of sun, sky and ground light."""

    direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    ground: np.ndarray

    def on(self, normals, up) -> np.ndarray:
        """(N, 3) light that falls on surfaces with these normals (N, 3)."""
        lambert = np.clip((normals @ self.direction + 0.15) / 1.15, 0, 1)
        above = 0.5 + 0.5 * (normals @ up)
        return lambert[:, None] * self.sun + mix(self.ground, self.sky, above)


def choose_light(rng, up) -> Light:
    side = rng.standard_normal(3)
    side[2] -= 0.7  # more often from the viewer's side
    side -= (side @ up) * up
    direction = rng.uniform(0.5, 1.6) * up + side / np.linalg.norm(side)
    warm = np.array([1.0, 0.96, 0.9]) ** rng.uniform(-0.6, 1.8)
    strength = rng.uniform(0.35, 0.95)
    ambient = rng.uniform(0.40, 0.62)
    parts = direction / np.linalg.norm(direction), strength * warm, ambient / warm, 0.55 * ambient * warm
    return Light(*(part.astype(np.float32) for part in parts))


# ---------------------------------------------------------------- picture elements
def render_animal(rng, studio, animal, frame, xy, depth, light):
    """The lit animal over the photograph: colour (H, W, 3), share of each pixel covered (H, W), depth of the nearest skin (H, W),
    infinite where there is none. xy (V, 2), depth (V,): its vertices in the photograph."""
    height, width = frame.height, frame.width
    rgb, alpha = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    nearest = np.full((height, width), np.inf, np.float32)
    low = np.clip(np.floor(xy.min(0)).astype(int) - 1, 0, (width - 1, height - 1))
    high = np.clip(np.ceil(xy.max(0)).astype(int) + 1, low + 1, (width, height))
    w, h = (int(n) for n in high - low)
    s = SUPERSAMPLE
    seen = rasterize(torch.from_numpy(photo_plane(xy - low, depth, w, h))[None], studio.smal.faces, (h * s, w * s))
    face, bary = seen.face[0].numpy(), seen.bary[0].numpy()
    row, column = np.nonzero(face >= 0)
    if not len(row):
        return rgb, alpha, nearest
    base, layers = coat(rng, studio)
    fields = np.concatenate([vertex_normals(animal.verts, studio.faces), np.stack([c[0] for c in layers], 1)], 1).astype(
        np.float32
    )
    corner, weight = studio.faces[face[row, column]], bary[row, column]  # (N, 3) each
    at = sum(fields[corner[:, k]] * weight[:, k, None] for k in range(3))  # (N, 3 + layers)
    normal = at[:, :3] / np.maximum(np.linalg.norm(at[:, :3], axis=1, keepdims=True), 1e-6)
    paint = np.tile(base.astype(np.float32), (len(row), 1))
    for i, (_, soft, c) in enumerate(layers):
        there = np.flatnonzero(at[:, 3 + i] > -soft)
        paint[there] = mix(paint[there], c, step(at[there, 3 + i], soft))
    hair = cv2.blur(rng.standard_normal((h * s, w * s), dtype=np.float32), (1, 5) if rng.random() < 0.7 else (4, 2))[row, column]
    paint = np.clip(paint * (1 + rng.uniform(0.05, 0.25) * hair[:, None]), 0, 1)
    edge = np.clip(1 + normal[:, 2:], 0, 1) ** 3  # fur shines where it is seen along the skin
    lit = paint * light.on(normal, animal.up.astype(np.float32)) + rng.uniform(0, 0.12) * edge * light.sky

    pixel = row // s * w + column // s
    count = np.bincount(pixel, minlength=h * w).astype(np.float32)
    sums = np.stack([np.bincount(pixel, lit[:, k], h * w) for k in range(3)], 1) / np.maximum(count, 1)[:, None]
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    rgb[window] = sums.reshape(h, w, 3)
    alpha[window] = count.reshape(h, w) / s**2
    z = np.where(face >= 0, seen.depth[0].numpy(), np.inf)
    nearest[window] = np.minimum.reduce([z[i::s, j::s] for i in range(s) for j in range(s)])
    return rgb, alpha, nearest


def render_shadow(studio, animal, frame, light) -> np.ndarray:
    """(H, W) how much of the sun the animal takes from the ground under its lowest point."""
    up = animal.up
    above = animal.verts @ up - (animal.verts @ up).min()
    fallen = animal.verts - above[:, None] / (light.direction @ up) * light.direction
    plane = project(torch.from_numpy(fallen.astype(np.float32))[None], torch.tensor([[animal.scale]]))[0].numpy()
    xy = frame.to_photo(plane)
    height, width = max(frame.height // 2, 1), max(frame.width // 2, 1)
    flat = photo_plane(xy, plane[:, 2], frame.width, frame.height)
    dark = (rasterize(torch.from_numpy(flat)[None], studio.smal.faces, (height, width)).face[0].numpy() >= 0).astype(np.float32)
    dark = cv2.resize(dark, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR)
    # Where little light comes under the body the ground is darker, whatever the sun does.
    feet = animal.verts - above[:, None] * up
    feet = project(torch.from_numpy(feet[above < 0.25].astype(np.float32))[None], torch.tensor([[animal.scale]]))[0].numpy()
    spots = np.zeros((frame.height, frame.width), np.float32)
    places = np.round(frame.to_photo(feet) - 0.5).astype(int)
    inside = ((places >= 0) & (places < (frame.width, frame.height))).all(1)
    spots[places[inside, 1], places[inside, 0]] = 1
    spots = cv2.GaussianBlur(spots, (0, 0), frame.side * 0.02)
    return np.maximum(cv2.GaussianBlur(dark, (0, 0), frame.side * 0.008), np.clip(spots * 6, 0, 0.8))


def paint_ground(rng, height, width, horizon, light) -> np.ndarray:
    """(H, W, 3) grass, boards, tiles, carpet, sand, snow or asphalt, drawn together towards the horizon's row."""
    kind = rng.choice(["grass", "boards", "tiles", "carpet", "plain"], p=[0.34, 0.18, 0.13, 0.15, 0.2])
    rough = noise(rng, height, width, rng.uniform(3, 8), 4)
    away = np.maximum(np.arange(height, dtype=np.float32) - horizon, 0) / height + 0.15  # (H,)
    depth = (1 / away)[:, None] * np.ones(width, np.float32)
    across = (np.arange(width, dtype=np.float32) - width * rng.uniform(0.2, 0.8))[None] / width * depth
    if kind == "grass":
        blade = cv2.blur(rng.standard_normal((height, width), dtype=np.float32), (1, int(rng.integers(4, 10)))) * 1.6
        base = mix(np.array((0.22, 0.36, 0.10)), np.array((0.50, 0.48, 0.20)), rng.random())
        return base * (1 + 0.16 * rough + 0.30 * blade)[..., None]
    if kind == "plain":
        options = ((0.76, 0.66, 0.48), (0.88, 0.90, 0.94), (0.36, 0.36, 0.37), (0.60, 0.57, 0.52), (0.42, 0.32, 0.22))
        base = np.array(options[rng.integers(len(options))]) * rng.uniform(0.85, 1.1)
        grain = rng.standard_normal((height, width), dtype=np.float32)
        return base * (1 + 0.08 * rough + rng.uniform(0.02, 0.09) * grain)[..., None]
    base = colour(rng, (0.25, 0.2, 0.15), (0.75, 0.65, 0.6), 0.6)
    if kind == "carpet":
        other = colour(rng)
        figure = step(noise(rng, height, width, rng.uniform(6, 14), 2) - 0.5, 0.15) * rng.uniform(0.1, 0.7)
        grain = rng.standard_normal((height, width), dtype=np.float32)
        return mix(base, other, figure) * (1 + 0.10 * grain + 0.05 * rough)[..., None]
    angle, size = rng.uniform(-0.6, 0.6), rng.uniform(3, 8)
    u, v = (np.cos(angle) * across + np.sin(angle) * depth) * size, (np.cos(angle) * depth - np.sin(angle) * across) * size
    if kind == "boards":
        u, v = u * 1.5, v * 0.25
    shade = rng.uniform(0.8, 1.15, 997)[(np.floor(u).astype(int) * 31 + np.floor(v + 0.37 * np.floor(u)).astype(int) * 17) % 997]
    groove = np.minimum(np.abs(u - np.round(u)), 1.0 if kind == "boards" else np.abs(v - np.round(v))) < 0.04
    return base * (shade * np.where(groove, 0.6, 1) * (1 + 0.06 * rough))[..., None].astype(np.float32)


def paint_wall(rng, height, width) -> np.ndarray:
    """(H, W, 3) sky, leaves, a plain, striped or brick wall, or shelves."""
    kind = rng.choice(["sky", "leaves", "plain", "stripes", "bricks", "shelves"], p=[0.18, 0.26, 0.24, 0.1, 0.12, 0.1])
    rough = noise(rng, height, width, rng.uniform(2, 5), 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "sky":
        sky = mix(np.array((0.45, 0.62, 0.88)), np.array((0.85, 0.88, 0.92)), y / height)
        return mix(sky, (0.93, 0.93, 0.94), step(rough - 0.4, 0.6) * rng.uniform(0.2, 0.9))
    if kind == "leaves":
        fine = noise(rng, height, width, rng.uniform(10, 26), 3)
        base = mix(np.array((0.10, 0.20, 0.06)), np.array((0.42, 0.46, 0.22)), rng.random())
        return base * np.clip(1 + 0.35 * rough + 0.45 * fine, 0.15, 2.6)[..., None]
    base = colour(rng, (0.2, 0.2, 0.2), (0.92, 0.92, 0.92), 0.8)
    plain = (
        base * (1 + 0.05 * rough + rng.normal(0, 0.15) * (x / width - 0.5) + rng.normal(0, 0.15) * (y / height - 0.5))[..., None]
    )
    if kind == "plain":
        return plain
    size = rng.uniform(0.05, 0.18) * max(height, width)
    if kind == "stripes":
        slope = rng.choice((0.0, 0.0, 1.0, rng.normal()))
        return mix(
            plain,
            colour(rng),
            step(np.sin((x + slope * y) * 2 * np.pi / size) - rng.uniform(-0.6, 0.6), 0.1) * rng.uniform(0.2, 0.9),
        )
    row = np.floor(y / size * 2)
    column = np.floor(x / size + 0.5 * (row % 2))
    if kind == "bricks":
        gap = (np.abs(y / size * 2 - row - 0.5) > 0.44) | (np.abs(x / size + 0.5 * (row % 2) - column - 0.5) > 0.47)
        shade = rng.uniform(0.75, 1.2, 997)[(row * 37 + column * 11).astype(int) % 997]
        brick = mix(np.array((0.55, 0.28, 0.20)), base, rng.random())
        return np.where(gap[..., None], base * 0.9, brick * (shade * (1 + 0.1 * rough))[..., None])
    books = (rng.uniform(0.1, 0.7, (997, 1)) + rng.normal(0, 0.12, (997, 3)))[
        (np.floor(y / size / 1.4) * 53 + np.floor(x / size * rng.uniform(3, 6))).astype(int) % 997
    ]
    board = np.abs(y / size / 1.4 - np.round(y / size / 1.4)) < 0.06
    return np.clip(np.where(board[..., None], base * 0.7, books), 0.03, 1)


def outline(rng, centre, size) -> np.ndarray:
    """(N, 2) x, y of a random shape about a centre: an ellipse, a box or a lump. size: its half width and height."""
    kind = rng.integers(3)
    if kind == 1:
        corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.85, 1.0, (4, 2))
    else:
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        radius = 1 + (
            0.25 * np.sin(angle[:, None] * (1, 2, 3) + rng.uniform(0, 6, 3)) @ rng.normal(0, 0.5, 3) if kind == 2 else 0 * angle
        )
        corner = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return Rotation.from_euler("z", rng.normal(0, 0.15)).as_matrix()[:2, :2].dot((corner * size).T).T + centre


def paint_thing(rng, picture, polygon, light_from) -> np.ndarray:
    """Fills a polygon (N, 2: x, y) of the picture (H, W, 3), in place, with a shaded texture; returns its mask (H, W)."""
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    where = mask.astype(np.float32) / 255
    low, high = polygon.min(0), np.maximum(polygon.max(0), polygon.min(0) + 1)
    x = (np.arange(width, dtype=np.float32) - low[0]) / (high[0] - low[0]) - 0.5
    y = (np.arange(height, dtype=np.float32) - low[1]) / (high[1] - low[1]) - 0.5
    shade = 1 - rng.uniform(0.1, 0.6) * y[:, None] - rng.uniform(0.1, 0.5) * light_from * x[None]
    texture = rng.uniform(0.03, 0.18) * noise(rng, height, width, rng.uniform(4, 40), 2)
    base = fur(rng, list(FUR)) if rng.random() < 0.35 else colour(rng, (0.08,) * 3, (0.9,) * 3, 0.9)
    picture += where[..., None] * (base * np.clip(shade + texture, 0.2, 1.5)[..., None] - picture)
    return where


def paint_background(rng, frame, animal, xy, light):
    """(H, W, 3) wall, things and ground."""
    height, width = frame.height, frame.width
    low, high = xy.min(0), xy.max(0)
    tilt = max(float(-animal.up[2]), 0.0)  # how much the camera looks down
    horizon = high[1] - (high[1] - low[1]) * (rng.uniform(0.05, 0.5) + 2.2 * tilt * rng.uniform(0.6, 1.2))
    ground = paint_ground(rng, height, width, horizon, light)
    picture = paint_wall(rng, height, width) if horizon > 0 else ground.copy()
    picture = np.asarray(picture, np.float32)
    light_from = np.sign(light.direction[0])
    if horizon > 0:
        for _ in range(rng.integers(0, 4)):  # furniture, bushes, other things behind
            size = rng.uniform(0.06, 0.35, 2) * (width, height)
            paint_thing(
                rng, picture, outline(rng, (rng.uniform(0, width), horizon - rng.uniform(-0.1, 0.9) * size[1]), size), light_from
            )
        rows = np.arange(height, dtype=np.float32) - horizon
        soft = rng.uniform(0.5, 0.02 * height + 1)
        picture = mix(picture, ground, np.broadcast_to(step(rows, soft)[:, None], (height, width)))
    for _ in range(rng.integers(0, 3)):  # things on the ground, behind or beside
        size = rng.uniform(0.03, 0.16, 2) * max(width, height)
        place = (rng.uniform(0, width), rng.uniform(min(max(horizon, 0), height * 0.8), height))
        paint_thing(rng, picture, outline(rng, place, size), light_from)
    picture = np.clip(picture, 0, 1.2) * (0.45 + 0.55 * (light.sky + 0.7 * light.sun)).astype(np.float32)
    if rng.random() < 0.6:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3.5))
    return picture


def paint_front(rng, picture, animal_mask, light_from) -> np.ndarray:
    """Now and then puts something in front of the animal, in place, leaving most to see; returns its cover (H, W) in [0, 1]."""
    height, width = picture.shape[:2]
    covered = np.zeros((height, width), np.float32)
    row, column = np.nonzero(animal_mask)
    if rng.random() > 0.25 or not len(row):
        return covered
    before = picture.copy()
    at = rng.integers(len(row))
    place, extent = np.array([column[at], row[at]], np.float64), max(np.ptp(row), np.ptp(column))
    kind = rng.choice(["thing", "pole", "tufts"], p=[0.45, 0.25, 0.3])
    if kind == "thing":
        covered = paint_thing(
            rng, picture, outline(rng, place + (0, 0.1 * extent), rng.uniform(0.06, 0.2, 2) * extent), light_from
        )
    elif kind == "pole":
        half, lean = rng.uniform(0.015, 0.05) * extent, rng.normal(0, 0.06) * height
        x = place[0]
        corners = np.array(
            [[x - half + lean, -5], [x + half + lean, -5], [x + half - lean, height + 5], [x - half - lean, height + 5]]
        )
        covered = paint_thing(rng, picture, corners, light_from)
    else:
        green = mix(np.array((0.20, 0.34, 0.10)), np.array((0.5, 0.46, 0.2)), rng.random())
        foot = row.max() + rng.uniform(-0.02, 0.08, 60) * extent
        x = rng.uniform(column.min(), column.max(), 60)
        tip = np.stack([x + rng.normal(0, 0.04, 60) * extent, foot - rng.uniform(0.06, 0.20, 60) * extent], 1)
        blades = np.stack([np.stack([x - 1.3, foot], 1), np.stack([x + 1.3, foot], 1), tip], 1)  # (60, 3, 2)
        mask, shade = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
        for blade, level in zip(np.round(blades * 16).astype(np.int32), rng.integers(110, 255, 60), strict=True):
            cv2.fillPoly(mask, [blade], 255, cv2.LINE_AA, 4)
            cv2.fillPoly(shade, [blade], int(level), cv2.LINE_AA, 4)
        covered = mask.astype(np.float32) / 255
        colours = green * (shade.astype(np.float32) / 180)[..., None]
        picture += covered[..., None] * (colours - picture)
    if (animal_mask & (covered > 0.5)).sum() > 0.3 * animal_mask.sum():
        picture[:] = before
        return np.zeros((height, width), np.float32)
    return covered


def develop(rng, picture) -> bytes:
    """What lens, sensor and file do to a picture (H, W, 3) of linear-ish light in [0, 1]: the bytes of a JPEG."""
    height, width = picture.shape[:2]
    picture = picture * rng.uniform(0.85, 1.12) * rng.uniform(0.94, 1.06, 3)
    if rng.random() < 0.3:  # darker corners
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        picture = picture * (1 - rng.uniform(0.05, 0.3) * (x * x + y * y) / 2)[..., None]
    picture = picture.astype(np.float32)
    blur = rng.random()
    if blur < 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.3))
    elif blur < 0.27:
        length = int(rng.integers(3, 7))
        picture = cv2.blur(picture, (length, 1) if rng.random() < 0.7 else (1, length))
    picture += rng.uniform(0.002, 0.03) * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.where(picture > 0.7, 0.7 + 0.3 * np.tanh((picture - 0.7) / 0.3), picture)  # highlights keep some drawing
    # Pure white counts as outside the photograph in the published protocol: stay below it.
    image = np.clip(picture * 255, 0, 249).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


# ---------------------------------------------------------------- one picture with its labels
def make_picture(rng, studio, animal):
    """Photographs an animal: the JPEG's bytes, the entry of the JSON list without its `img_path`, and the truth's arrays."""
    plane = project(torch.from_numpy(animal.verts)[None], torch.tensor([[animal.scale]]))[0].numpy()  # (V, 3)
    joint_plane = project(torch.from_numpy(animal.joints)[None], torch.tensor([[animal.scale]]))[0].numpy()  # (41, 3)
    frame = choose_frame(rng, plane)
    xy, joint_xy = frame.to_photo(plane), frame.to_photo(joint_plane)
    light = choose_light(rng, animal.up)
    rgb, alpha, nearest = render_animal(rng, studio, animal, frame, xy, plane[:, 2], light)

    picture = paint_background(rng, frame, animal, xy, light)
    shadow = render_shadow(studio, animal, frame, light)
    picture = picture * (1 - rng.uniform(0.25, 0.6) * shadow)[..., None]
    picture = np.ascontiguousarray(picture * (1 - alpha[..., None]) + rgb * alpha[..., None], dtype=np.float32)
    covered = paint_front(rng, picture, alpha >= 0.5, np.sign(light.direction[0]))
    mask = (alpha >= 0.5) & (covered < 0.5)  # (H, W)

    keypoints = list(joints.KEYPOINT_JOINTS)
    labels = np.zeros((24, 3))
    places = joint_xy[keypoints] - 0.5  # whole numbers at pixel centres
    pixel = np.floor(joint_xy[keypoints]).astype(int)
    inside = ((pixel >= 0) & (pixel < (frame.width, frame.height))).all(1)
    column, row = np.clip(pixel, 0, (frame.width - 1, frame.height - 1)).T
    in_sight = (joint_plane[keypoints, 2] < nearest[row, column] + HIDDEN_BEHIND) & (covered[row, column] < 0.5)
    visible = inside & in_sight
    labels[: len(keypoints)][visible] = np.column_stack([np.round(places, 3), np.ones(len(places))])[visible]

    row, column = np.nonzero(mask)
    low, high = np.array([column.min(), row.min()]), np.array([column.max(), row.max()]) + 1
    slack = rng.uniform(-0.01, 0.03, 4) * (high - low).max()
    low = np.clip(np.round(low - slack[:2]), 0, None)
    high = np.clip(np.round(high + slack[2:]), low + 2, (frame.width, frame.height))
    entry = {
        "img_width": frame.width,
        "img_height": frame.height,
        "joints": labels.tolist(),
        "img_bbox": [int(n) for n in (*low, *(high - low))],
        "is_multiple_dogs": False,
        "seg": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode(),
    }
    truth = {
        "verts": animal.verts,
        "joints": animal.joints,
        "scale": np.float32(animal.scale),
        "crop_square": np.array([frame.left, frame.top, frame.side], np.float32),  # left, top, side in the photograph's pixels
        **animal.parameters,
        "del_v": animal.parameters["del_v"].astype(np.float16),
    }
    return develop(rng, picture), entry, truth


# ---------------------------------------------------------------- files
_studio: Studio | None = None  # of this worker process


def _start_worker(body_dir):
    global _studio
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _studio = Studio(body_dir)


def _make_batch(task):
    """Makes the pictures `indices` of one list and writes their JPEGs and truths; returns their entries."""
    folder, seed, stream, indices = task
    rngs = [np.random.default_rng((seed, stream, i)) for i in indices]
    entries = []
    for i, rng, animal in zip(indices, rngs, _studio.animals(rngs), strict=True):
        jpeg, entry, truth = make_picture(rng, _studio, animal)
        if stream == 0:
            number = list(BREEDS).index(animal.breed)
            name = f"n9{number:07d}-{animal.breed}/n9{number:07d}_{i:05d}"
        else:
            name = f"made_up_{i:06d}"
            entry |= {"ear_tips_labelled": False, "has_segmentation": True}
            for k in UNLABELLED_IN_ANIMAL_POSE:
                entry["joints"][k] = [0.0, 0.0, 0.0]
        for part, ending in (("Images", ".jpg"), ("Truth", ".npz")):
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
            path = folder / part / (name + ending)
            if part == "Images":
                path.write_bytes(jpeg)
            else:
                np.savez(path, **truth)
        entries.append({"img_path": name + ".jpg", **entry})
    return entries


def write_pictures(data_dir: Path, num_images: int, seed: int, num_workers: int) -> None:
    """Writes both data sets into data_dir, which holds the body already. With one worker all happens in this process."""
    stanford, animal_pose = data_dir / "StanfordExtra_v12", data_dir / "animal_pose"
    few = max(1, num_images // ANIMAL_POSE_SHARE)
    tasks = [
        (folder, seed, stream, range(start, min(start + BATCH, count)))
        for stream, (folder, count) in enumerate(((stanford, num_images), (animal_pose, few)))
        for start in range(0, count, BATCH)
    ]
    lists = {stanford: [], animal_pose: []}

    def collect(results):
        with tqdm(total=num_images + few, desc="making pictures", unit="picture") as bar:
            for task, entries in zip(tasks, results, strict=True):
                lists[task[0]] += entries
                bar.update(len(entries))

    body_dir = data_dir / "smal"
    if num_workers == 1:
        threads = torch.get_num_threads(), cv2.getNumThreads()
        _start_worker(body_dir)
        collect(map(_make_batch, tasks))
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, _start_worker, (body_dir,)) as pool:
            collect(pool.map(_make_batch, tasks))

    (stanford / "StanfordExtra_v12.json").write_text(json.dumps(lists[stanford]))
    (animal_pose / "animal_pose_data.json").write_text(json.dumps(lists[animal_pose]))
    order = np.random.default_rng((seed, 2)).permutation(num_images)
    ends = np.round(np.cumsum(list(SPLITS.values())) * num_images).astype(int)
    for split, part in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        np.save(stanford / f"{split}_stanford_StanfordExtra_v12.npy", np.sort(part))
    np.save(animal_pose / "test_animal_pose.npy", np.arange(few))


def make_data(data_dir, num_images: int = 1200, seed: int = 0, num_workers: int | None = None) -> bool:
    """Makes the made-up body and pictures in data_dir, aside and then renamed.

    num_workers: processes, as many as there are cores where None. Returns whether anything was made: a folder made with the
    same settings is left as it is. Raises ValueError where num_images is below 20, FileExistsError where data_dir holds
    anything else.
    """
    if num_images < 20:
        raise ValueError(f"--num_images {num_images}: at least 20 are needed to fill the three splits.")
    data_dir = Path(data_dir)
    if data_dir.exists() and not data_dir.is_dir():
        raise FileExistsError(f"--data_dir {data_dir} is a file; give a folder.")
    settings = {"num_images": num_images, "seed": seed, "version": VERSION}
    if data_dir.is_dir() and any(data_dir.iterdir()):
        found = data_dir / SETTINGS_FILE
        if found.exists() and json.loads(found.read_text()) == settings:
            return False
        made = f"was made with other settings ({found.read_text().strip()})" if found.exists() else "is not empty"
        raise FileExistsError(f"{data_dir} {made}; remove it or give another --data_dir. Wanted: {json.dumps(settings)}.")
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=data_dir.parent, prefix=f".{data_dir.name}-"))
    try:
        write_quadruped(aside)
        write_pictures(aside, num_images, seed, num_workers or os.cpu_count() or 1)
        (aside / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")
        aside.chmod(0o755)
        if data_dir.is_dir():
            data_dir.rmdir()
        aside.rename(data_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/synthetic", help="folder to make")
    parser.add_argument("--num_images", type=int, default=5000, help="photographs in StanfordExtra's layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_works", type=int, default=None, help="processes (default: one a core)")
    args = parser.parse_args(argv)
    try:
        made = make_data(args.data_dir, args.num_images, args.seed, args.num_works)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if made:
        print(f"{args.num_images} pictures of made-up dogs are in {args.data_dir}")
    else:
        print(f"{args.data_dir} holds these {args.num_images} pictures already; nothing was made")


if __name__ == "__main__":
    main()
