"""Named indices of SMAL's joints, vertices and keypoints."""

from functools import lru_cache

import numpy as np
import torch

# Chains of the joint tree (SMAL's order; joint 0 is the root, whose rotation is global).
FRONT_LEFT_LEG, FRONT_RIGHT_LEG = range(7, 11), range(11, 15)
BACK_LEFT_LEG, BACK_RIGHT_LEG = range(17, 21), range(21, 25)
NECK, HEAD = 15, 16
TAIL = range(25, 32)
MOUTH = 32
LEFT_EAR, RIGHT_EAR = 33, 34

NAMES = (
    "root", "pelvis0", "spine", "spine0", "spine1", "spine2", "spine3",
    "LLeg1", "LLeg2", "LLeg3", "LFoot", "RLeg1", "RLeg2", "RLeg3", "RFoot", "Neck", "Head",
    "LLegBack1", "LLegBack2", "LLegBack3", "LFootBack",
    "RLegBack1", "RLegBack2", "RLegBack3", "RFootBack",
    "Tail1", "Tail2", "Tail3", "Tail4", "Tail5", "Tail6", "Tail7", "Mouth", "LEar", "REar",
)  # fmt: skip

# Vertices of SMAL's mesh that follow the regressed joints: nose, chin, right and left ear tip, left
# and right eye.
LANDMARK_VERTICES = (1863, 26, 2124, 150, 3055, 1097)

# StanfordExtra's first 20 keypoints, as indices into the regressed joints and then the landmarks:
# paw, middle and top of the left front, left rear, right front and right rear leg; start and end of
# the tail; left and right ear base; nose, chin; left and right ear tip. The data's "left" is the
# model's "right".
KEYPOINT_JOINTS = (14, 13, 12, 24, 23, 22, 10, 9, 8, 20, 19, 18, 25, 31, 34, 33, 35, 36, 37, 38)
NUM_KEYPOINTS = len(KEYPOINT_JOINTS)
# The keypoints of the mirrored animal: left and right change places.
MIRRORED = (6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 12, 13, 15, 14, 16, 17, 19, 18)
KEYPOINT_NAMES = (
    *(
        f"{leg}_{part}"
        for leg in ("left_front", "left_rear", "right_front", "right_rear")
        for part in ("paw", "middle", "top")
    ),
    *(
        "tail_start",
        "tail_end",
        "left_ear_base",
        "right_ear_base",
        "nose",
        "chin",
        "left_ear_tip",
        "right_ear_tip",
    ),
)

# Vertices of SMAL's template on its mirror plane (y = 0).
MIRROR_PLANE_VERTICES = (
       *range(0, 33), 37, 55, 119, 120, 163, 209, 210, 211, 213, 216, 227, 326, 395, 452, 578, 910,
    959, 964, 975, 976, 977,     1172, 1175, 1176, 1178, 1194, 1243, 1739, *range(1796, 1841),
    *range(1842, 1864), 1870, 1919, 1960, 1961, 1965, 1967,     2003,
)  # fmt: skip

# The six log-scales: (joints, axes, entry). Legs and ears are scaled with both sides together.
_LEGS = (*FRONT_LEFT_LEG, *FRONT_RIGHT_LEG, *BACK_LEFT_LEG, *BACK_RIGHT_LEG)
_EARS = (LEFT_EAR, RIGHT_EAR)
LOGSCALES = (
    (_LEGS, (2,), 0),  # leg length
    (_LEGS, (0, 1), 1),  # leg thickness
    (TAIL, (0,), 2),  # tail length
    (TAIL, (1, 2), 3),  # tail thickness
    (_EARS, (1,), 4),
    (_EARS, (2,), 5),
)


@lru_cache
@torch.inference_mode(False)  # whoever asks first, others may need gradients
def _keypoint_index(device: torch.device) -> torch.Tensor:
    return torch.tensor(KEYPOINT_JOINTS, device=device)  # copied to a device once


def keypoints_of(joints: torch.Tensor) -> torch.Tensor:
    """(B, 20, 3) the labelled keypoints of a body's joints (B, J + 6, 3)."""
    return joints.index_select(1, _keypoint_index(joints.device))


def logscale_mask(num_joints: int) -> np.ndarray:
    """(6, J, 3): 1 where a log-scale acts on a joint's axis."""
    mask = np.zeros((len(LOGSCALES), num_joints, 3))
    for joints, axes, entry in LOGSCALES:
        mask[np.ix_([entry], list(joints), list(axes))] = 1
    return mask


# Limits (radians) of the axis-angle components x, y, z, per joint 1...32: (low, high).
JOINT_LIMITS = (
    ((-0.3, -1.2, -0.1), (0.3, 0.5, 0.1)),  # pelvis0
    ((-0.4, -1.0, -0.8), (0.4, 0.9, 0.8)),  # spine
    ((-0.4, -1.0, -0.8), (0.4, 0.9, 0.8)),
    ((-0.4, -0.5, -0.4), (0.4, 1.2, 0.4)),
    ((-0.5, -0.4, -0.5), (0.5, 1.4, 0.5)),
    ((-0.5, -0.6, -0.8), (0.5, 1.4, 0.8)),
    ((-0.05, -1.3, -0.6), (0.05, 0.8, 0.6)),  # front left leg
    ((-0.05, -1.0, -0.6), (0.05, 1.1, 0.6)),
    ((-0.4, -0.3, -0.7), (0.1, 1.4, 0.4)),
    ((-0.3, -0.4, -0.7), (0.1, 1.5, 0.3)),
    ((-0.05, -1.3, -0.6), (0.05, 0.8, 0.6)),  # front right leg
    ((-0.05, -1.0, -0.6), (0.05, 0.9, 0.6)),
    ((-0.1, -0.3, -0.4), (0.4, 1.4, 0.7)),
    ((-0.1, -0.4, -0.3), (0.3, 1.5, 0.7)),
    ((-0.8, -1.0, -1.1), (0.8, 1.0, 1.1)),  # neck
    ((-0.5, -1.0, -0.9), (0.5, 0.9, 0.9)),  # head
    ((-0.2, -0.5, -0.5), (0.3, 0.8, 0.4)),  # back left leg
    ((-0.2, -0.6, -0.6), (0.3, 0.8, 0.5)),
    ((-0.3, -0.8, -0.5), (0.2, 0.2, 0.4)),
    ((-0.3, -0.3, -0.5), (0.2, 1.1, 0.3)),
    ((-0.3, -0.5, -0.4), (0.2, 0.8, 0.5)),  # back right leg
    ((-0.3, -0.6, -0.5), (0.2, 0.8, 0.6)),
    ((-0.2, -0.8, -0.4), (0.3, 0.2, 0.5)),
    ((-0.2, -0.3, -0.3), (0.3, 1.1, 0.5)),
    ((-0.1, -1.5, -1.2), (0.1, 1.4, 1.2)),  # tail
    ((-0.1, -1.0, -0.8), (0.1, 1.0, 0.8)),
    ((-0.1, -1.0, -0.8), (0.1, 1.0, 0.8)),
    ((-0.1, -1.0, -0.8), (0.1, 1.0, 0.8)),
    ((-0.1, -1.0, -0.8), (0.1, 1.0, 0.8)),
    ((-0.1, -1.4, -1.0), (0.1, 1.4, 1.0)),
    ((-0.1, -0.7, -0.9), (0.1, 1.1, 0.8)),
    ((-0.1, -1.1, -0.1), (0.1, 0.5, 0.1)),  # mouth
)
