"""The embedded dog's skeleton at rest: joint tree, joint centres, landmarks and bones.

Axes: x towards the head, y to the animal's left, z up; the ground is near z = -0.55 and the body,
tail included, is about 2.1 units long. Places are those of the left side; the right mirrors it.
"""

import numpy as np

from smal_model import joints

SHOULDER, ELBOW, WRIST = (0.375, 0.095, 0.03), (0.275, 0.113, -0.15), (0.305, 0.112, -0.395)
FRONT_FOOT, FRONT_TOE = (0.335, 0.112, -0.49), (0.42, 0.112, -0.525)
HIP, KNEE, HOCK = (-0.43, 0.085, 0.09), (-0.315, 0.113, -0.115), (-0.50, 0.112, -0.325)
BACK_FOOT, BACK_TOE = (-0.47, 0.112, -0.487), (-0.385, 0.112, -0.525)
NECK, HEAD = (0.42, 0, 0.235), (0.60, 0, 0.36)
EAR_BASE, EAR_TIP = (0.632, 0.064, 0.448), (0.655, 0.182, 0.494)
EYE, NOSE, CHIN = (0.772, 0.066, 0.393), (0.95, 0.0, 0.336), (0.875, 0.0, 0.235)
TAIL_X, TAIL_Z = np.linspace(-0.60, -1.10, 7), np.linspace(0.183, 0.158, 7)
LEGS = (
    joints.FRONT_LEFT_LEG, joints.FRONT_RIGHT_LEG, joints.BACK_LEFT_LEG, joints.BACK_RIGHT_LEG,
)  # fmt: skip
PARENTS = (
    -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 11, 12, 13, 6, 15, 1, 17, 18, 19, 1, 21, 22, 23, 1,
    25, 26, 27, 28, 29, 30, 16, 16, 16,
)  # fmt: skip


def _mirrored(point):
    return (point[0], -point[1], point[2])


def turned(turns, vectors):
    """Vectors (N, 3), each turned by its own matrix (N, 3, 3)."""
    return (turns @ vectors[..., None])[..., 0]


def norm(v) -> np.ndarray:
    """Lengths (...) of vectors (..., 3)."""
    return np.sqrt((v * v).sum(-1))


def rest_joints() -> np.ndarray:
    """(35, 3) joint centres of the template before it is centred."""
    spine_x = (-0.42, -0.40, -0.28, -0.14, 0, 0.14, 0.26)
    spine = [(x, 0, z) for x, z in zip(spine_x, (0.14, 0.14, *[0.15] * 4, 0.16), strict=True)]
    front, back = [SHOULDER, ELBOW, WRIST, FRONT_FOOT], [HIP, KNEE, HOCK, BACK_FOOT]
    right_front, right_back = ([_mirrored(p) for p in leg] for leg in (front, back))
    tail = [(x, 0, z) for x, z in zip(TAIL_X, TAIL_Z, strict=True)]
    end = [(0.72, 0, 0.29), EAR_BASE, _mirrored(EAR_BASE)]
    chains = [*spine, *front, *right_front, NECK, HEAD, *back, *right_back, *tail, *end]
    return np.array(chains, dtype=np.float64)


def mirror_joints() -> np.ndarray:
    """(35,) the joint on the other side."""
    image = np.arange(len(PARENTS))
    for left, right in (LEGS[:2], LEGS[2:]):
        image[list(left)], image[list(right)] = list(right), list(left)
    image[[joints.LEFT_EAR, joints.RIGHT_EAR]] = joints.RIGHT_EAR, joints.LEFT_EAR
    return image


def bones() -> list[tuple]:
    """(joint, end, other end, radius of the flesh at each) of every bone; the trunk's lie in the
    middle of its flesh."""
    trunk = [
        (1, (-0.56, 0, 0.13), (-0.34, 0, 0.13), 0.12, 0.14),
        (2, (-0.28, 0, 0.13), (-0.17, 0, 0.125), 0.13, 0.14),
        (3, (-0.14, 0, 0.12), (-0.03, 0, 0.11), 0.14, 0.155),
        (4, (0.0, 0, 0.10), (0.11, 0, 0.08), 0.16, 0.18),
        (5, (0.14, 0, 0.075), (0.22, 0, 0.07), 0.19, 0.195),
        (6, (0.26, 0, 0.07), (0.38, 0, 0.11), 0.195, 0.15),
        (15, (0.44, 0, 0.245), (0.555, 0, 0.33), 0.12, 0.10),
        (16, (0.63, 0, 0.375), (0.91, 0, 0.335), 0.10, 0.045),
        (32, (0.74, 0, 0.262), (0.88, 0, 0.255), 0.024, 0.024),
    ]
    left = [
        (7, SHOULDER, ELBOW, 0.085, 0.060),
        (8, ELBOW, WRIST, 0.057, 0.034),
        (9, WRIST, FRONT_FOOT, 0.035, 0.034),
        (10, FRONT_FOOT, FRONT_TOE, 0.036, 0.034),
        (17, HIP, KNEE, 0.085, 0.072),
        (18, KNEE, HOCK, 0.066, 0.033),
        (19, HOCK, BACK_FOOT, 0.034, 0.034),
        (20, BACK_FOOT, BACK_TOE, 0.036, 0.034),
        (33, EAR_BASE, EAR_TIP, 0.040, 0.030),
    ]
    image = mirror_joints()
    right = [(image[j], _mirrored(a), _mirrored(b), ra, rb) for j, a, b, ra, rb in left]
    ends = np.stack([np.append(TAIL_X, -1.15), np.zeros(8), np.append(TAIL_Z, 0.155)], 1)
    radius = np.linspace(0.048, 0.024, 8)
    tail = [(25 + i, ends[i], ends[i + 1], radius[i], radius[i + 1]) for i in range(7)]
    return trunk + left + right + tail
