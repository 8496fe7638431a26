"""Shapes of the embedded body: named directions of displacement, and breeds as coefficients."""

import numpy as np

from smal_model import NUM_BETAS, joints

from . import skeleton as at
from .surface import corner_sums, ear_frame, vertex_normals

SHAPES = (
    "size", "leg length", "girth", "torso length", "neck length", "head size", "muzzle length",
    "muzzle depth", "ear length", "ear drop", "coat", "tail length", "tail thickness", "tail curl",
    "chest depth", "belly", "leg thickness", "paw size", "hindquarters", "neck thickness",
    "skull width", "chest width", "back slope", "ear width", "hind angulation", "brow", "throat",
)  # fmt: skip

# Breeds, as coefficients of SHAPES (those left out are 0). Each is drawn with the spread below.
BREEDS = {
    "hound": {
        "ear drop": 1.3, "ear length": 1.0, "muzzle depth": 0.8, "tail length": 0.5, "throat": 0.6,
        "chest depth": 0.4,
    },
    "retriever": {
        "ear drop": 1.1, "ear length": 0.4, "muzzle depth": 0.5, "tail thickness": 1.3,
        "girth": 0.5, "coat": 0.8,
    },
    "sighthound": {
        "leg length": 1.2, "girth": -1.0, "belly": -1.4, "chest depth": 1.2, "muzzle length": 1.2,
        "neck length": 1.1, "leg thickness": -1.0, "skull width": -0.8, "ear length": -0.7,
        "tail thickness": -0.8,
    },
    "terrier": {
        "size": -1.2, "leg length": -0.5, "torso length": -0.6, "head size": 0.7,
        "tail length": -1.6, "ear drop": 0.3, "muzzle depth": 0.9, "ear length": -0.5,
    },
    "spitz": {
        "ear drop": -1.0, "ear length": -0.2, "tail curl": 1.6, "tail thickness": 1.7, "coat": 1.2,
        "neck thickness": 0.9, "muzzle length": -0.4, "girth": 0.5,
    },
    "dachshund": {
        "size": -1.0, "leg length": -2.3, "torso length": 1.8, "ear drop": 1.2, "ear length": 0.7,
        "muzzle length": 0.5, "leg thickness": 0.5, "chest depth": 0.3,
    },
    "mastiff": {
        "size": 1.1, "girth": 1.1, "head size": 1.0, "muzzle length": -1.5, "muzzle depth": 1.4,
        "leg thickness": 1.3, "paw size": 1.0, "chest width": 1.3, "skull width": 1.0,
        "neck thickness": 1.0, "ear drop": 0.8,
    },
    "shepherd": {
        "ear drop": -1.2, "ear length": 0.0, "hind angulation": 1.0, "back slope": 0.8,
        "muzzle length": 0.6, "tail thickness": 1.0, "torso length": 0.4,
    },
}  # fmt: skip
SPREAD = 0.55  # standard deviation of every coefficient within a breed
FAMILIES = ("hound", None, "sighthound", "terrier", "spitz")  # 1, the default, covers all breeds


def ramp(x, low, high) -> np.ndarray:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _stretch(x, low, high, soft=0.04):
    """How far a stretch of [low, high], with soft ends, moves x."""
    return soft * (np.logaddexp(0, (x - low) / soft) - np.logaddexp(0, (x - high) / soft))


def _bump(distance, width):
    return np.exp(-0.5 * np.square(distance / width))


def _leg_axis(x, z):
    """x of the legs' middle at height z: of the front legs where x > 0, else of the hind legs."""

    def follow(*points):
        points = sorted(points, key=lambda p: p[2])
        return np.interp(z, [p[2] for p in points], [p[0] for p in points])

    front, back = (
        (at.SHOULDER, at.ELBOW, at.WRIST, at.FRONT_FOOT),
        (at.HIP, at.KNEE, at.HOCK, at.BACK_FOOT),
    )
    return np.where(x > 0, follow(*front), follow(*back))


def shape_directions(verts, faces, weights) -> np.ndarray:
    """Displacement of each vertex by one unit of each of SHAPES; mirror-symmetric.

    Args:
        verts: (V, 3), the template before it is centred, body units.
        faces: (F, 3).
        weights: (V, J) skinning weights.

    Returns:
        (V, 3, K), body units.
    """
    x, y, z = verts.T
    zero = np.zeros_like(x)
    front = weights[:, [*joints.FRONT_LEFT_LEG, *joints.FRONT_RIGHT_LEG]].sum(1)
    back = weights[:, [*joints.BACK_LEFT_LEG, *joints.BACK_RIGHT_LEG]].sum(1)
    tail = weights[:, list(joints.TAIL)].sum(1)
    ears = weights[:, [joints.LEFT_EAR, joints.RIGHT_EAR]].sum(1)
    head = weights[:, [joints.HEAD, joints.MOUTH]].sum(1) + ears
    neck = weights[:, joints.NECK]
    legs, torso = front + back, np.clip(1 - front - back - tail - head, 0, 1)
    side = np.sign(y)
    below = np.minimum(z + 0.06, 0) * np.clip(legs * 1.5, 0, 1)  # depth along a leg
    shin = ramp(-z, 0.08, 0.22) * legs  # 1 on the slim part of the legs
    axis_z = 0.13 - 0.06 * ramp(x, -0.35, 0.15)  # the trunk's middle
    from_leg_x, from_leg_y = x - _leg_axis(x, z), y - 0.112 * side
    neck_way = np.subtract(at.HEAD, at.NECK)
    neck_length = np.linalg.norm(neck_way)
    along_neck = (verts - at.NECK) @ (neck_way / neck_length) / neck_length
    from_neck = verts - (np.array(at.NECK) + np.clip(along_neck, 0, 1)[:, None] * neck_way)
    muzzle = ramp(x, 0.70, 0.80) * head * (1 - ears)
    trunk = torso * (1 - 0.6 * neck)
    with_neck = neck + head + 0.5 * torso * ramp(x, 0.3, 0.42)
    neck_stretch = np.clip(_stretch(along_neck, 0, 1, 0.12), 0, 1) * with_neck
    rump = _bump(x + 0.43, 0.13) * ramp(z, -0.28, -0.05) * (1 - tail)
    past_tail = _stretch(-x, 0.60, 1.2, 0.03)
    fur = 0.013 * torso * (1 + 0.5 * ramp(-z, -0.1, 0.1))
    fur = fur + 0.004 * np.clip(legs + head - ears, 0, 1) + 0.008 * tail
    frame = ear_frame()
    ear_base = np.stack([zero + at.EAR_BASE[0], at.EAR_BASE[1] * side, zero + at.EAR_BASE[2]], 1)
    flip = np.stack([zero + 1, side, zero + 1], 1)
    ear = ((verts - ear_base) * flip) @ frame  # (V, 3) along, across, through
    ear_t = ear[:, :1] / np.linalg.norm(np.subtract(at.EAR_TIP, at.EAR_BASE))
    ear_t = np.clip(ear_t, 0, 1.2) * ears[:, None]
    hinge = np.array((1.0, 0.1, 0.0))  # an ear drops about this line: the left one's -y towards z
    dropped = ears[:, None] * np.cross(-0.42 * hinge, (verts - ear_base) * flip)
    normals = vertex_normals(verts, faces, corner_sums(faces, len(verts), "F"))

    def move(dx=0, dy=0, dz=0):
        return np.stack([zero + dx, zero + dy, zero + dz], 1)

    chest = 0.022 * side * ramp(np.abs(y), 0, 0.09)
    chest = chest * _bump(x - 0.25, 0.22) * ramp(-head, -0.5, 0)
    wrist_sink = 0.035 * back * _bump(z + 0.325, 0.12)
    brow = head * _bump(x - 0.735, 0.04) * ramp(z, 0.37, 0.43) * (1 - ears)
    moves = {
        "size": 0.07 * verts,
        "leg length": move(dz=0.16 * below),
        "girth": trunk[:, None] * move(0, 0.12 * y, 0.10 * (z - axis_z))
        + move(dy=0.008 * side * legs),
        "torso length": move(0.11 * (_stretch(x, -0.30, 0.22) - 0.26)),
        "neck length": 0.20 * neck_stretch[:, None] * neck_way,
        "head size": 0.11 * head[:, None] * (verts - at.HEAD),
        "muzzle length": move(0.20 * _stretch(x, 0.74, 0.97, 0.03) * head * (1 - ears)),
        "muzzle depth": muzzle[:, None] * move(0, 0.16 * y, 0.18 * (z - 0.315)),
        "ear length": 0.25 * ears[:, None] * (ear[:, :1] * frame[:, 0]) * flip,
        "ear drop": (dropped + ear_t**2 * (0, -0.012, -0.035)) * flip,
        "ear width": 0.22 * ears[:, None] * (ear[:, 1:2] * frame[:, 1]) * flip,
        "tail length": move(-0.16 * past_tail * ramp(tail, 0, 0.5)),
        "tail thickness": tail[:, None]
        * move(0, 0.30 * y, 0.30 * (z - np.interp(-x, -at.TAIL_X, at.TAIL_Z))),
        "tail curl": move(0, 0, 0.35 * np.square(past_tail) * tail),
        "chest depth": move(dz=-0.040 * _bump(x - 0.20, 0.17) * ramp(-z, -0.05, 0.12) * torso),
        "belly": move(dz=-0.040 * _bump(x + 0.13, 0.15) * ramp(-z, -0.08, 0.05) * torso),
        "leg thickness": (shin + 0.4 * legs)[:, None] * move(0.11 * from_leg_x, 0.11 * from_leg_y),
        "paw size": ramp(-z, 0.44, 0.50)[:, None]
        * move(0.16 * (from_leg_x - 0.02), 0.16 * from_leg_y, 0.10 * (z + 0.55)),
        "hindquarters": rump[:, None] * move(0.10 * (x + 0.43), 0.13 * y, 0.10 * (z - 0.05)),
        "chest width": move(dy=chest),
        "skull width": ((1 - 0.6 * muzzle) * head)[:, None] * move(0, 0.13 * y, 0),
        "neck thickness": 0.16 * (neck * (1 - ramp(along_neck, 1.0, 1.3)))[:, None] * from_neck,
        "back slope": move(dz=0.05 * (x + 0.05) * ramp(z, -0.55, -0.05)),
        "brow": brow[:, None] * move(0, 0.004 * side, 0.018),
        "hind angulation": move(0.022 * back * _bump(z + 0.115, 0.10) - wrist_sink),
        "coat": normals * fur[:, None],
        "throat": (neck + head)[:, None]
        * move(dz=-0.028 * _bump(x - 0.56, 0.09) * ramp(-z, -0.34, -0.20)),
    }
    return np.stack([moves[name] for name in SHAPES], -1)


def breed_mean(breed: str) -> np.ndarray:
    """(K,) mean coefficients of one of BREEDS."""
    return np.array([BREEDS[breed].get(name, 0.0) for name in SHAPES])


def shape_families() -> tuple[np.ndarray, np.ndarray]:
    """Means (5, K) and covariances (5, K, K) of the families; number 1 has all breeds' moments."""
    all_means = np.stack([breed_mean(b) for b in BREEDS])
    within = SPREAD**2 * np.eye(len(SHAPES))
    means = np.stack([all_means.mean(0) if f is None else breed_mean(f) for f in FAMILIES])
    between = np.cov(all_means.T, bias=True)
    return means, np.stack([within + between if f is None else within for f in FAMILIES])


def sample_betas(rng: np.random.Generator, breed: str, n: int = NUM_BETAS) -> np.ndarray:
    """(n,) shape coefficients of a dog of a breed, within 2.5 standard deviations of its mean."""
    return breed_mean(breed)[:n] + SPREAD * np.clip(rng.standard_normal(n), -2.5, 2.5)
