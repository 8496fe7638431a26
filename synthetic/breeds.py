"""Breeds of the wide preset: proportions, ears, tails and fur of real dogs.

Coefficients are those of `shape.SHAPES`. The template is longer and lower than most dogs: USUAL
brings it to the proportions of the field's breed standards (height at the withers about the length
of the trunk, elbows at half that height) and to keypoints of annotated photographs (ear bases as
far apart as they are from the nose).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from smal_model import NUM_BETAS, joints

from .animal import Fur, Studio
from .shape import SHAPES, ramp

USUAL = {
    "leg length": 3.1, "torso length": 0.4, "head size": 1.6, "skull width": 1.7,
    "ear length": 0.9, "tail length": -0.9, "belly": -0.3,
}  # fmt: skip
SPREAD = 0.65  # standard deviation of every coefficient within a breed
LIMIT = 5.0  # of every coefficient
EARS_OUT = 0.045, 0.105  # how far ear bases move outwards, body units
PUPPY = {"head size": 2.0, "muzzle length": -1.0, "leg length": -0.9, "paw size": 1.2, "girth": 0.8}

# Ears: raised (radians about the base; 0 sideways, -1.3 hanging), spread of that.
PRICK, SEMI, ROSE, HANG = (0.75, 0.2), (0.1, 0.35), (-0.5, 0.3), (-1.25, 0.25)
# Tails: raised (radians above straight back), curl of each joint.
LOW, LEVEL, HIGH, CURLED, ANY = (-1.0, 0.0), (0.0, 0.03), (0.8, 0.08), (1.1, 0.38), (0.2, 0.1)


@dataclass(frozen=True)
class Breed:
    """Mean coefficients beyond USUAL, carriage of ears and tail, fur and its length."""

    shape: dict[str, float] = field(default_factory=dict)
    ears: tuple[float, float] = HANG
    tail: tuple[float, float] = ANY
    fur: str = "short"
    length: tuple[float, float] = (0.0, 0.02)  # least and most, body units


BREEDS = {
    "hound": Breed({"ear length": 1.2, "muzzle depth": 0.8, "tail length": 0.8, "throat": 0.6},
        tail=HIGH),
    "retriever": Breed({"muzzle depth": 0.5, "tail thickness": 1.3, "girth": 0.6}, fur="long",
        length=(0.01, 0.06)),
    "pointer": Breed({"leg length": 0.5, "chest depth": 0.6, "belly": -0.6, "muzzle depth": 0.7,
        "ear length": 0.4}),
    "sighthound": Breed({"leg length": 0.6, "girth": -1.2, "belly": -1.6, "chest depth": 1.4,
        "muzzle length": 1.2, "neck length": 1.0, "leg thickness": -1.0, "skull width": -1.4,
        "ear length": -1.0, "tail thickness": -0.8}, ROSE, LOW),
    "terrier": Breed({"head size": 0.5, "tail length": -1.6, "muzzle depth": 0.9,
        "ear length": -0.6}, SEMI, HIGH, "wire", (0.015, 0.05)),
    "bull terrier": Breed({"girth": 0.9, "chest width": 1.2, "muzzle length": -0.7,
        "skull width": 0.8, "ear length": -0.6, "leg thickness": 0.7, "neck thickness": 0.9,
        "torso length": -0.4}, ROSE, LEVEL),
    "spitz": Breed({"ear length": -0.8, "tail thickness": 1.8, "neck thickness": 1.0,
        "muzzle length": -0.5}, PRICK, CURLED, "long", (0.04, 0.10)),
    "husky": Breed({"ear length": -0.5, "tail thickness": 1.5, "neck thickness": 0.7}, PRICK, HIGH,
        "long", (0.03, 0.07)),
    "dachshund": Breed({"leg length": -5.8, "torso length": 2.2, "ear length": 0.6,
        "muzzle length": 0.7, "chest depth": 0.3}),
    "corgi": Breed({"leg length": -4.7, "torso length": 1.4, "head size": 0.4, "ear length": 0.4,
        "tail length": -2.0}, PRICK, LEVEL, "long", (0.015, 0.05)),
    "basset": Breed({"leg length": -5.5, "torso length": 1.6, "ear length": 1.9, "throat": 1.6,
        "girth": 0.6, "leg thickness": 1.4, "paw size": 1.0, "muzzle depth": 1.1, "head size": 0.6},
        tail=HIGH),
    "mastiff": Breed({"girth": 1.2, "head size": 0.9, "muzzle length": -1.4, "muzzle depth": 1.5,
        "leg thickness": 1.5, "paw size": 1.1, "chest width": 1.4, "skull width": 1.0,
        "neck thickness": 1.2, "throat": 0.8}, tail=LOW),
    "pug": Breed({"girth": 1.2, "head size": 1.3, "muzzle length": -3.6, "muzzle depth": 1.0,
        "skull width": 1.6, "neck length": -1.2, "chest width": 1.2, "leg length": -1.7,
        "ear length": -0.7, "tail length": -1.0, "torso length": -0.6}, ROSE, CURLED),
    "toy": Breed({"head size": 1.5, "muzzle length": -1.4, "skull width": 0.9,
        "leg thickness": -0.9, "leg length": -0.8, "ear length": 0.7, "ear width": 0.8,
        "torso length": -0.5, "paw size": -0.7}, PRICK, HIGH),
    "shepherd": Breed({"hind angulation": 1.0, "back slope": 0.8, "muzzle length": 0.5,
        "tail thickness": 1.0, "torso length": 0.5}, PRICK, LOW, "long", (0.01, 0.05)),
    "collie": Breed({"muzzle length": 0.9, "skull width": -0.7, "tail thickness": 1.6,
        "neck thickness": 0.5}, SEMI, LOW, "long", (0.05, 0.11)),
    "spaniel": Breed({"ear length": 1.3, "ear width": 0.7, "leg length": -1.3, "muzzle depth": 0.6,
        "tail length": -0.8}, HANG, LEVEL, "long", (0.03, 0.08)),
    "setter": Breed({"leg length": 0.3, "tail thickness": 1.2, "ear length": 0.8,
        "muzzle length": 0.4, "girth": -0.3}, HANG, LEVEL, "long", (0.03, 0.08)),
    "poodle": Breed({"leg length": 0.5, "muzzle length": 0.4, "ear length": 0.9, "ear width": 0.6,
        "skull width": -0.3}, HANG, HIGH, "woolly", (0.04, 0.11)),
    "lap dog": Breed({"leg length": -2.8, "head size": 1.0, "muzzle length": -1.3,
        "ear length": 0.8, "girth": 0.5}, HANG, CURLED, "long", (0.07, 0.13)),
    "schnauzer": Breed({"muzzle depth": 1.6, "ear length": -0.4, "tail length": -1.5,
        "torso length": -0.5}, SEMI, HIGH, "wire", (0.02, 0.06)),
    "mountain dog": Breed({"girth": 1.3, "chest width": 0.8, "leg thickness": 1.3, "paw size": 1.0,
        "tail thickness": 1.8, "muzzle depth": 0.8, "head size": 0.3, "neck thickness": 0.8}, HANG,
        LOW, "long", (0.05, 0.11)),
    "great dane": Breed({"leg length": 0.6, "chest depth": 1.0, "muzzle depth": 1.1,
        "neck length": 0.8, "ear length": -0.2, "belly": -0.8}, SEMI, LOW),
}  # fmt: skip


def draw_breed(rng: np.random.Generator, names: Sequence[str] = tuple(BREEDS)) -> tuple[str, Breed]:
    """One of these breeds, or now and then a cross of two under the first one's name."""
    name = names[int(rng.integers(len(names)))]
    first, second = BREEDS[name], BREEDS[names[int(rng.integers(len(names)))]]
    if rng.random() > 0.3:
        return name, first
    part = rng.uniform(0, 0.6)
    keys = {**first.shape, **second.shape}
    shape = {k: (1 - part) * first.shape.get(k, 0) + part * second.shape.get(k, 0) for k in keys}
    ears, tail = (second.ears, first.tail) if rng.random() < 0.5 else (first.ears, second.tail)
    coated = first if rng.random() < 0.5 else second
    return name, Breed(shape, ears, tail, coated.fur, coated.length)


def draw_shape(rng: np.random.Generator, breed: Breed) -> np.ndarray:
    """(K,) coefficients of SHAPES of one dog; one in twelve is a puppy."""
    puppy = PUPPY if rng.random() < 0.08 else {}
    mean = [sum(d.get(n, 0.0) for d in (USUAL, breed.shape, puppy)) for n in SHAPES]
    drawn = np.array(mean) + SPREAD * np.clip(rng.standard_normal(len(SHAPES)), -2.5, 2.5)
    return np.clip(drawn, -LIMIT, LIMIT)


def draw_fur(rng: np.random.Generator, breed: Breed) -> Fur:
    """What the coat of a dog of this breed is like."""
    return Fur(breed.fur, rng.uniform(*breed.length))


def rest_displacement(rng, studio: Studio, shape: np.ndarray, fur: Fur) -> np.ndarray:
    """(V, 3) what the network's coefficients cannot express: the other shape directions, ear bases
    further out, dents and bulges, and the coat."""
    ears = studio.followers(joints.LEFT_EAR, joints.RIGHT_EAR)
    x, y, _ = studio.axes
    head = studio.followers(joints.HEAD) * ramp(-x, -0.76, -0.60)
    out = np.clip(ears + 0.6 * head, 0, 1) * rng.uniform(*EARS_OUT)
    moved = (shape[NUM_BETAS:].astype(np.float32) @ studio.other_shapes).reshape(-1, 3)
    moved[:, 1] += out * np.clip(y / 0.05, -1, 1)
    moved[:, 2] -= 0.4 * out * ears
    return moved + 0.8 * studio.dents(rng) + fur.length * studio.long_coat
