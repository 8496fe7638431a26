"""Poses of the embedded body: standing, walking, running, sitting, lying, on its side."""

import numpy as np

from smal_model import joints

from .skeleton import LEGS, PARENTS

POSES = {  # how often each is drawn
    "standing": 0.40, "walking": 0.29, "running": 0.08, "sitting": 0.14, "lying": 0.07,
    "on its side": 0.02,
}  # fmt: skip


class PoseDraft:
    """One pose in the making.

    `angles` (J, 3) are axis-angles in the rest pose's axes: positive y bends downwards, or a leg
    backwards.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng, self.angles = rng, np.zeros((len(PARENTS), 3))

    def u(self, low, high):
        """Uniform between two values."""
        return self.rng.uniform(low, high)

    def n(self, spread):
        """Normal about 0, clipped at 2.5 standard deviations."""
        return spread * min(max(self.rng.standard_normal(), -2.5), 2.5)

    def leg(self, chain, angles, outwards=0.0, turn=0.0):
        """Bends a leg: four angles about y down the chain; spreads it and twists it outwards."""
        left = 1 if chain in (joints.FRONT_LEFT_LEG, joints.BACK_LEFT_LEG) else -1
        self.angles[list(chain), 1] += angles
        self.angles[chain[0], 0] += left * outwards
        self.angles[chain[0], 2] += left * turn

    def stride(self, phases, reach, lift):
        """A gait: one phase (radians) a leg; a foot is in the air around phase pi / 2."""
        for chain, phase in zip(LEGS, phases, strict=True):
            swing, air = -reach * np.cos(phase), max(0.0, np.sin(phase)) * lift
            bends = (swing, -0.75 * air, 1.1 * air, 0.5 * air)
            if chain[0] > joints.NECK:
                bends = (swing * 0.8, 0.55 * air, -0.65 * air, 0.6 * air)
            self.leg(chain, np.array(bends) + [self.n(0.05) for _ in range(4)])


def _standing(p):
    """Bends the joints of one kind of pose; returns the angles of neck, head and tail or None."""
    neck = head = None
    for leg in LEGS:
        p.leg(leg, [p.n(0.13), p.n(0.12), p.n(0.08), p.n(0.08)], p.n(0.03), p.n(0.06))
    if p.u(0, 1) < 0.2:  # sniffing
        neck, head = p.u(0.6, 0.95), p.u(0, 0.4)
    elif p.u(0, 1) < 0.15:  # a paw raised
        raised = LEGS[p.rng.integers(2)]
        p.leg(raised, [p.u(-0.6, -0.2), p.u(-0.8, -0.3), p.u(0.5, 1.1), 0.3])
    return neck, head, None


def _walking(p):
    phase, reach, lift = p.u(0, 2 * np.pi), p.u(0.25, 0.45), p.u(0.4, 0.8)
    p.stride(phase + np.array((0, np.pi, np.pi + 0.4, 0.4)), reach, lift)
    return None, None, None


def _running(p):
    phase, reach, lift = p.u(0, 2 * np.pi), p.u(0.55, 0.8), p.u(0.7, 1.0)
    p.stride(phase + np.array((0, 0.5, np.pi + 0.2, np.pi + 0.6)), reach, lift)
    p.angles[2:7, 1] += 0.06 * np.cos(phase)
    p.angles[0, 1] += 0.12 * np.sin(phase)
    return p.u(-0.2, 0.3), None, p.u(-0.2, 0.8)


def _sitting(p):
    tilt = p.u(0.42, 0.54)
    p.angles[0, 1] -= tilt
    p.angles[2:7, 1] -= p.u(0.01, 0.05)
    raised = tilt - p.angles[2:7, 1].sum()
    wide = p.u(0.05, 0.18)
    for leg in LEGS[:2]:
        upright = np.clip(raised + p.n(0.06), 0, 1.5)
        p.leg(leg, [0.62 * upright, 0.38 * upright, p.n(0.06), p.n(0.06)], p.n(0.02))
    for leg in LEGS[2:]:
        bends = [-0.46 + p.n(0.03), 0.45 + p.n(0.1), -0.68 + p.n(0.06), 0.35 + p.n(0.1)]
        p.leg(leg, bends, wide, p.u(0, 0.2))
    return p.u(0.1, 0.75), p.u(0.0, 0.5), p.u(-0.1, 0.5) + 0.5


def _lying(p):
    tuck = p.u(0.35, 0.55)  # the rump is tucked under, the chest level
    p.angles[0, 1] -= tuck - 0.22
    p.angles[2:7, 1] += tuck / 5
    for leg in LEGS[:2]:
        bends = [-0.62 + p.n(0.10), -0.86 + p.n(0.05), p.n(0.1), p.n(0.1)]
        p.leg(leg, bends, p.n(0.02), p.n(0.05))
    for leg in LEGS[2:]:
        bends = [-0.48 + p.n(0.02), 0.74 + p.n(0.04), -0.76 + p.n(0.03), 0.45 + p.n(0.1)]
        p.leg(leg, bends, p.u(0.1, 0.2), p.u(0, 0.3))
    return p.u(-0.9, 0.2), None, p.u(-0.2, 0.4)


def _on_its_side(p):
    p.angles[0, 0] += p.rng.choice((-1, 1)) * p.u(1.35, 1.7)
    for leg in LEGS[:2]:
        p.leg(leg, [p.u(-0.7, 0.1), p.u(-0.6, 0.3), p.u(0, 0.7), p.n(0.1)])
    for leg in LEGS[2:]:
        p.leg(leg, [p.u(-0.45, 0.3), p.u(-0.3, 0.6), p.u(-0.6, 0.0), p.u(-0.1, 0.4)])
    return p.u(-0.3, 0.4), None, p.u(-0.6, 0.4)


_KINDS = dict(
    zip(POSES, (_standing, _walking, _running, _sitting, _lying, _on_its_side), strict=True)
)


def within_limits(angles) -> np.ndarray:
    """(J, 3) the angles clipped to a hundredth inside `joints.JOINT_LIMITS`."""
    limits = 0.99 * np.array(joints.JOINT_LIMITS)  # (32, 2, 3)
    angles[1:33] = np.clip(angles[1:33], limits[:, 0], limits[:, 1])
    return angles


def _one_pose(rng, kind):
    p = PoseDraft(rng)
    a = p.angles
    bend = p.n(0.04 if kind in ("walking", "running") else 0.09)
    for joint in range(2, 7):  # the spine
        a[joint] += p.n(0.03), p.n(0.03), bend + p.n(0.03)
    usual = p.u(-0.45, 0.35), p.n(0.18), p.u(-0.7, 1.0)
    curl = p.n(0.12)
    own = _KINDS[kind](p)
    neck, head, tail = (u if o is None else o for u, o in zip(usual, own, strict=True))
    a[joints.NECK] += p.n(0.08), neck, p.n(0.28)
    a[joints.HEAD] += p.n(0.12), head, p.n(0.2)
    wag = p.n(0.35)
    a[joints.TAIL[0]] += 0, tail, wag
    for joint in joints.TAIL[1:]:
        a[joint] += 0, curl + p.n(0.05), 0.25 * wag + p.n(0.05)
    a[joints.MOUTH, 1] += max(0.0, p.u(-0.2, 0.35))
    lift, turn = p.u(-0.4, 0.25), p.n(0.15)
    for joint, left in ((joints.LEFT_EAR, 1), (joints.RIGHT_EAR, -1)):
        a[joint] += left * (lift + p.n(0.06)), p.n(0.08), left * (turn + p.n(0.06))
    return within_limits(a).ravel()


def sample_pose(rng: np.random.Generator, n: int, kinds=None) -> np.ndarray:
    """Poses inside the joint limits.

    Args:
        rng: the random numbers.
        n: how many.
        kinds: n names of POSES; drawn where None.

    Returns:
        (n, 105) axis-angles. The first three tilt the whole animal (sitting, lying on its side) in
        the world's axes, z up; turn the world to face a camera after it.
    """
    if kinds is None:
        kinds = rng.choice(list(POSES), size=n, p=list(POSES.values()))
    return np.stack([_one_pose(rng, kind) for kind in kinds])


def pose_prior_moments(poses=None, floor: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of poses, without the root's.

    Args:
        poses: (N, 105) axis-angles; 2,000 of `sample_pose` where None.
        floor: radians, added to every deviation, which keeps the precision finite.

    Returns:
        (105,) mean and (105, 105) lower Cholesky factor of the precision.
    """
    poses = sample_pose(np.random.default_rng(0), 2000) if poses is None else poses.copy()
    poses[:, :3] = 0
    covariance = np.cov(poses.T) + floor**2 * np.eye(poses.shape[1])
    return poses.mean(0), np.linalg.cholesky(np.linalg.inv(covariance))
