"""The animals of the wide preset: breeds, poses and views of real photographs."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from smal_model import NUM_BETAS
from util.camera import DISTANCE

from .animal import TO_CAMERA, Draft, Studio, turned
from .breeds import BREEDS, Breed, draw_breed, draw_fur, draw_shape, rest_displacement
from .motion import KINDS, TRUNK, draw_motion
from .pose import pose_prior_moments
from .shape import SHAPES, shape_families
from .skeleton import LEGS

TRIES = 12  # poses drawn for a dog before the least bad one is taken
DEPTH = 0.03  # how deep a limb may be in the body, body units
NEAR, FAR = 5.0, 24.0  # from the camera to the animal, body units


def _turn(axis: int, angle: float) -> np.ndarray:
    """(3, 3) turn about one of the axes."""
    return cv2.Rodrigues(angle * np.eye(3)[axis])[0]


def draw_view(rng, state: str | None) -> tuple[np.ndarray, float]:
    """A direction of view: every azimuth, the front more often; from low to nearly above.

    Args:
        rng: the random numbers.
        state: how the trunk lies (`motion.TRUNK`).

    Returns:
        (3, 3) the world's axes (columns: the animal's front, its left, up) in camera space, and the
        angle from the animal's front to the camera, radians to its left.
    """
    front = rng.random() < 0.5
    away = np.clip(rng.normal(0, 0.8), -np.pi, np.pi) if front else rng.uniform(-np.pi, np.pi)
    raised = np.clip(rng.normal(0.22, 0.24), -0.25, 1.0)
    if rng.random() < (0.35 if state in ("down", "flat") else 0.07):
        raised = rng.uniform(0.5, 1.35)
    roll = np.clip(rng.normal(0, 0.08), -0.3, 0.3)
    return TO_CAMERA @ _turn(1, raised) @ _turn(0, roll) @ _turn(2, away), -away


def draw_front(rng, state: str | None) -> tuple[np.ndarray, float]:
    """As `draw_view`, of the animal's front half alone, mostly from its own height."""
    away = np.clip(rng.normal(0, 0.7), -1.5, 1.5)
    raised = np.clip(rng.normal(0.16, 0.16), -0.12, 0.7)
    return TO_CAMERA @ _turn(1, raised) @ _turn(2, away), -away


def draw_pose(rng, studio: Studio, shape, breed: Breed, kind: str, to_camera: float) -> np.ndarray:
    """(35, 3) axis-angles of a pose whose limbs stay outside the body; see `draw_motion`."""
    tries = []
    short = np.clip(-shape[SHAPES.index("leg length")] / 3, 0, 1) if kind in TRUNK else 0
    for _ in range(TRIES):
        angles = draw_motion(rng, kind, to_camera, breed.ears, breed.tail)
        for leg, way in zip(LEGS[2:], (1, -1), strict=True):  # short legs fold beside the belly
            angles[leg[0], 0] += 0.45 * way * short
        depth = studio.capsules.depth(angles, shape)
        if depth <= DEPTH:
            return angles
        tries.append((depth, angles))
    return min(tries, key=lambda t: t[0])[1]


def draw_wide(
    rng: np.random.Generator,
    studio: Studio,
    view: Callable = draw_view,
    kinds: dict[str, float] = KINDS,
    breeds: Sequence[str] = tuple(BREEDS),
) -> Draft:
    """A dog of the wide preset.

    Args:
        rng: the random numbers.
        studio: poses animals.
        view: `draw_view` or one like it.
        kinds: of poses, and how often each is drawn.
        breeds: names.
    """
    name, breed = draw_breed(rng, breeds)
    shape, fur = draw_shape(rng, breed), draw_fur(rng, breed)
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    world, to_camera = view(rng, TRUNK.get(kind))
    angles = draw_pose(rng, studio, shape, breed, kind, to_camera)
    angles[0] = turned(world, angles[0])
    del_v = rest_displacement(rng, studio, shape, fur)
    depth = np.exp(rng.uniform(np.log(NEAR), np.log(FAR))) - DISTANCE
    centre = rng.uniform(-0.06, 0.06, 2)
    fill = rng.uniform(0.72, 0.92)
    betas = shape[:NUM_BETAS]
    return Draft(name, betas, angles.ravel(), del_v, world[:, 2], depth, centre, fill, fur)


def wide_priors(count: int = 2000) -> tuple[tuple, tuple]:
    """Shape families and pose moments of this preset, as `body.write_body` takes them, from `count`
    dogs; family 1, the default, has the moments of them all."""
    rng = np.random.default_rng(0)
    drawn = [draw_breed(rng)[1] for _ in range(count)]
    shapes = np.stack([draw_shape(rng, breed) for breed in drawn])
    means, covariances = shape_families()
    means[1], covariances[1] = shapes.mean(0), np.cov(shapes.T)
    kinds = rng.choice(list(KINDS), size=count, p=list(KINDS.values()))
    poses = [
        draw_motion(rng, kind, rng.uniform(-np.pi, np.pi), breed.ears, breed.tail).ravel()
        for kind, breed in zip(kinds, drawn, strict=True)
    ]
    return (means, covariances), pose_prior_moments(np.stack(poses))
