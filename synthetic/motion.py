"""Poses of the wide preset, from directions of the limbs in the world.

A limb's segment has a forward angle: 0 straight down, pi / 2 forwards, negative backwards. What a
joint must turn by follows from the angles of the segments above it, so that a paw stands as it
should however the trunk is inclined.
"""

import numpy as np

from smal_model import joints

from . import skeleton as at
from .pose import PoseDraft

KINDS = {  # how often each is drawn
    "standing": 0.27, "walking": 0.11, "trotting": 0.06, "galloping": 0.07, "sitting": 0.18,
    "lying": 0.11, "resting on a hip": 0.05, "on its side": 0.04, "on its back": 0.02,
    "play bow": 0.025, "scratching": 0.02, "jumping": 0.025, "on hind legs": 0.02,
}  # fmt: skip
# Legs as (front, hind) by (upper, middle, lower segment, paw); where a kind differs, below.
STAND = ((-0.50, 0.06, 0.22, 1.15), (0.50, -0.72, 0.15, 1.15))
SPHINX = ((-0.85, 1.40, 1.50, 1.57), (1.65, -1.45, 1.45, 1.57))
SIT = ((-0.35, 0.04, 0.22, 1.2), (1.45, -1.25, 1.40, 1.5))
GAITS = {  # phases of the legs, swing, lift: least and most
    "walking": ((0, np.pi, np.pi + 0.6, 0.6), (0.2, 0.42), (0.3, 0.7)),
    "trotting": ((0, np.pi, np.pi, 0), (0.35, 0.6), (0.6, 1.1)),
    "galloping": ((0, 0.6, 2.4, 3.0), (0.6, 1.05), (0.9, 1.5)),
}


TRUNK = {  # how it lies; upright where not named
    "sitting": "seated", "scratching": "seated", "lying": "down", "resting on a hip": "down",
    "on its side": "flat", "on its back": "flat",
}  # fmt: skip


def _forward(points):
    """Forward angles of the segments between places."""
    points = np.array(points)
    along = np.diff(points, axis=0)
    return np.arctan2(along[:, 0], -along[:, 2])


REST = (
    _forward([at.SHOULDER, at.ELBOW, at.WRIST, at.FRONT_FOOT, at.FRONT_TOE]),
    _forward([at.HIP, at.KNEE, at.HOCK, at.BACK_FOOT, at.BACK_TOE]),
)
NECK_REST = np.arctan2(at.HEAD[2] - at.NECK[2], at.HEAD[0] - at.NECK[0])  # elevation, radians


class Motion(PoseDraft):
    """A pose in the making, with limbs, neck and head aimed in the world's axes."""

    def pitch(self, joint) -> float:
        """How far the chain down to a joint is turned front down."""
        total = 0.0
        while joint >= 0:
            total += self.angles[joint, 1]
            joint = at.PARENTS[joint]
        return total

    def trunk(self, nose_down, bend=0.0, spread=0.02):
        """Inclines the trunk and bends the spine (positive: towards the ground at the front)."""
        self.angles[0, 1] += nose_down
        for joint in range(2, 7):
            self.angles[joint] += self.n(spread), bend / 5 + self.n(spread), self.n(0.03)

    def aim(self, leg, directions, spread=0.08, outwards=0.0, turn=0.0):
        """Points the four segments of a leg, each with a random deviation."""
        hind = leg[0] > joints.NECK
        above = self.pitch(at.PARENTS[leg[0]])
        bends = []
        for wanted, rest in zip(directions, REST[hind], strict=True):
            total = rest - (wanted + self.n(spread))
            bends.append(total - above)
            above = total
        self.leg(leg, bends, outwards, turn)

    def aim_all(self, directions, spread=0.08, outwards=0.03):
        """Points all legs as (front, hind) says."""
        for leg in at.LEGS:
            self.aim(leg, directions[leg[0] > joints.NECK], spread, self.n(outwards), self.n(0.06))

    def gait(self, kind):
        """Legs somewhere in a stride."""
        phases, swing, lift = GAITS[kind]
        start, swing, lift = self.u(0, 2 * np.pi), self.u(*swing), self.u(*lift)
        for leg, phase in zip(at.LEGS, phases, strict=True):
            hind = leg[0] > joints.NECK
            phase = start + phase + self.n(0.15)
            reach, air = swing * np.cos(phase), lift * max(0.0, np.sin(phase))
            moves = np.array((reach, 0.9 * reach - 0.5 * air, 0.9 * reach - 1.2 * air, -1.2 * air))
            if hind:
                moves = np.array((0.9 * reach + 0.3 * air, 0.8 * reach - 0.5 * air, 0.9 * reach,
                                  -0.8 * air))  # fmt: skip
            self.aim(leg, np.array(STAND[hind]) + moves, 0.06, self.n(0.02), self.n(0.05))
        return start, swing

    def look(self, elevation, head_pitch, yaw=0.0, roll=0.0):
        """Points the neck (elevation above level) and the head (nose down); yaw to its left."""
        a = self.angles
        a[joints.NECK, 1] = NECK_REST - elevation - self.pitch(6)
        a[joints.NECK, 1] = np.clip(a[joints.NECK, 1], -1.1, 1.2)
        a[joints.HEAD, 1] = np.clip(head_pitch - self.pitch(joints.NECK), -1.1, 1.0)
        a[6, 2] += 0.15 * yaw
        a[joints.NECK, 2] += 0.45 * yaw
        a[joints.HEAD, 2] += 0.4 * yaw
        a[joints.HEAD, 0] += roll


def _standing(p):
    p.trunk(p.n(0.06), p.n(0.12))
    p.aim_all(STAND, 0.11)
    if p.u(0, 1) < 0.12:  # a paw raised
        p.angles[list(at.LEGS[p.rng.integers(2)]), 1] += (
            p.u(-0.7, -0.2), p.u(-0.7, -0.1), p.u(0.4, 1.1), p.u(0, 0.5),
        )  # fmt: skip


def _moving(kind):
    def bend(p):
        fast = kind == "galloping"
        p.trunk(p.n(0.12 if fast else 0.04), p.n(0.45 if fast else 0.08))
        p.gait(kind)

    return bend


def _sitting(p):
    p.trunk(-p.u(0.45, 0.95), -p.u(0.0, 0.3))
    wide = p.u(0.05, 0.35)
    for leg in at.LEGS[:2]:
        p.aim(leg, np.array(SIT[0]) + (p.n(0.12), 0, 0, 0), 0.08, p.n(0.03), p.n(0.08))
    for leg in at.LEGS[2:]:
        p.aim(leg, SIT[1], 0.1, wide + p.n(0.04), p.u(0, 0.35))


def _lying(p):
    p.trunk(p.n(0.05), p.u(-0.1, 0.15))
    for leg in at.LEGS[:2]:
        p.aim(leg, SPHINX[0], 0.12, p.n(0.04), p.n(0.12))
    stretched = p.u(0, 1) < 0.12  # hind legs behind, like a frog
    for leg in at.LEGS[2:]:
        way = (-1.0, -1.5, -1.3, -1.5) if stretched else SPHINX[1]
        p.aim(leg, way, 0.1, p.u(0.05, 0.4), p.u(0, 0.4))


def _on_a_hip(p):
    side = p.rng.choice((-1, 1))
    p.trunk(p.n(0.05), p.u(-0.1, 0.1))
    p.angles[0, 0] += side * p.u(0.7, 1.3)  # the pelvis lies, the chest stays upright
    twist = p.angles[0, 0]
    for joint in range(2, 7):
        p.angles[joint, 0] -= twist / 5.5
        p.angles[joint, 2] -= side * p.u(0.0, 0.12)
    for leg in at.LEGS[:2]:
        p.aim(leg, SPHINX[0], 0.12, p.n(0.04), p.n(0.1))
    for leg in at.LEGS[2:]:
        p.aim(leg, (1.45, -1.2, 1.2, 1.4), 0.2, p.n(0.08), p.n(0.1))


def _flat(p, roll):
    p.trunk(p.n(0.08), p.n(0.3))
    p.angles[0, 0] += roll


def _on_its_side(p):
    _flat(p, p.rng.choice((-1, 1)) * p.u(1.3, 1.75))
    for leg in at.LEGS[:2]:
        p.aim(leg, (p.u(-0.9, 0.3), p.u(-0.2, 1.0), p.u(-0.4, 0.9), p.u(0.2, 1.3)), 0.05, p.n(0.06))
    for leg in at.LEGS[2:]:
        p.aim(
            leg, (p.u(-0.2, 1.1), p.u(-1.2, -0.2), p.u(-0.3, 0.8), p.u(0.3, 1.3)), 0.05, p.n(0.06)
        )


def _on_its_back(p):
    _flat(p, p.rng.choice((-1, 1)) * p.u(2.4, 3.14))
    for leg in at.LEGS[:2]:
        p.aim(
            leg, (p.u(-0.9, -0.2), p.u(0.4, 1.5), p.u(-0.6, 0.9), p.u(-0.3, 0.9)), 0.05, p.u(0, 0.3)
        )
    for leg in at.LEGS[2:]:
        way = (p.u(0.3, 1.3), p.u(-1.3, -0.3), p.u(0, 1.0), p.u(0.3, 1.2))
        p.aim(leg, way, 0.05, p.u(0.1, 0.7))


def _play_bow(p):
    p.trunk(p.u(0.35, 0.65), -p.u(0.0, 0.25))
    for leg in at.LEGS[:2]:
        p.aim(leg, (p.u(-0.3, 0.3), p.u(0.9, 1.35), 1.3, 1.5), 0.08, p.n(0.05), p.n(0.1))
    for leg in at.LEGS[2:]:
        p.aim(leg, STAND[1], 0.12, p.n(0.04), p.n(0.06))


def _scratching(p):
    _sitting(p)
    leg = at.LEGS[2 + p.rng.integers(2)]
    p.angles[list(leg)] = 0
    p.aim(leg, (p.u(1.6, 2.1), p.u(0.1, 0.9), p.u(1.0, 1.8), p.u(1.2, 2.0)), 0.05, p.u(0.3, 0.6))


def _jumping(p):
    p.trunk(-p.u(-0.2, 0.8), p.n(0.2))
    tucked = p.u(0, 1)
    for leg in at.LEGS[:2]:
        way = (-0.1 + 0.6 * tucked, 1.3 - 1.0 * tucked, 1.1 - 2.0 * tucked, 1.3 - 1.8 * tucked)
        p.aim(leg, way, 0.15, p.n(0.05))
    stretched = p.u(0, 1)
    for leg in at.LEGS[2:]:
        way = (
            1.2 - 1.6 * stretched,
            -1.1 + 0.3 * stretched,
            0.9 - 1.4 * stretched,
            0.8 - stretched,
        )
        p.aim(leg, way, 0.15, p.n(0.05))


def _on_hind_legs(p):
    p.trunk(-p.u(0.9, 1.35), p.n(0.15))
    for leg in at.LEGS[:2]:
        p.aim(leg, (p.u(-0.2, 0.9), p.u(0.6, 1.8), p.u(0.2, 1.4), p.u(0.3, 1.4)), 0.08, p.n(0.06))
    for leg in at.LEGS[2:]:
        p.aim(
            leg, STAND[1] + np.array((p.u(0, 0.5), p.u(-0.4, 0), p.u(0, 0.3), 0)), 0.08, p.u(0, 0.1)
        )


_BENDS = {
    "standing": _standing, "sitting": _sitting, "lying": _lying, "resting on a hip": _on_a_hip,
    "on its side": _on_its_side, "on its back": _on_its_back, "play bow": _play_bow,
    "scratching": _scratching, "jumping": _jumping, "on hind legs": _on_hind_legs,
    **{kind: _moving(kind) for kind in GAITS},
}  # fmt: skip


def _gaze(p, kind, to_camera):
    """Neck and head: at the viewer, ahead, to the ground, up, back or resting."""
    ways = {"camera": 0.42, "ahead": 0.28, "sniff": 0.10, "up": 0.07, "back": 0.07, "side": 0.06}
    way = p.rng.choice(list(ways), p=list(ways.values()))
    reach = 2.2  # the farthest that neck and head turn together
    yaw = p.n(0.2)
    if way == "camera":
        yaw = np.clip(to_camera, -reach, reach) * p.u(0.75, 1.0) if abs(to_camera) < 2.6 else yaw
    elif way == "back":
        yaw = p.rng.choice((-1, 1)) * p.u(1.3, reach)
    elif way == "side":
        yaw = p.rng.choice((-1, 1)) * p.u(0.4, 1.3)
    elevation, nose = p.u(0.5, 1.35), p.n(0.25)
    if kind in ("galloping", "trotting"):
        elevation = p.u(0.0, 0.8)
    if way == "sniff":
        elevation, nose = (p.u(-0.9, 0.0), p.u(0.4, 1.2))
    elif way == "up":
        elevation, nose = p.u(0.8, 1.4), -p.u(0.3, 0.9)
    state = TRUNK.get(kind)
    if state == "flat":
        elevation, nose = p.u(-0.2, 0.6), p.n(0.3)
    elif state == "down" and way in ("ahead", "sniff"):  # the head rests
        elevation, nose = p.u(-0.35, 0.5), p.n(0.15)
    p.look(elevation, nose, yaw, p.n(0.16))


def _finish(p, ears, tail):
    """Tail, mouth and ears. ears, tail: see `breeds.Breed`."""
    a = p.angles
    raised, curl = tail
    raised, curl = raised + p.n(0.45), curl + p.n(0.09)
    wag, sweep = p.n(0.45), p.n(0.10)
    a[joints.TAIL[0]] += 0, np.clip(raised - 0.4 * p.pitch(1), -1.3, 1.6), wag
    for joint in joints.TAIL[1:]:
        a[joint] += 0, curl + p.n(0.04), sweep + p.n(0.03)
    a[joints.MOUTH, 1] += p.u(0.1, 0.5) if p.u(0, 1) < 0.4 else 0
    raised, spread = ears
    raised = raised + p.n(spread)
    turn, swing = p.n(0.2), p.n(0.1)
    for joint, left in ((joints.LEFT_EAR, 1), (joints.RIGHT_EAR, -1)):
        a[joint] += left * (raised + p.n(0.1)), swing + p.n(0.08), left * (turn + p.n(0.1))


def draw_motion(rng, kind: str, to_camera: float, ears, tail) -> np.ndarray:
    """One pose.

    Args:
        rng: the random numbers.
        kind: one of KINDS.
        to_camera: radians to the animal's left, from its front to the camera.
        ears: mean and spread of how far they are raised, radians.
        tail: mean of how far it is raised and of its curl, radians.

    Returns:
        (35, 3) axis-angles, the root's in the world's axes.
    """
    p = Motion(rng)
    _BENDS[kind](p)
    _gaze(p, kind, to_camera)
    _finish(p, ears, tail)
    return p.angles
