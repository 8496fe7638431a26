"""Whether limbs or the head pass through the body: bones as capsules, posed without the mesh."""

import numpy as np
from scipy.spatial.transform import Rotation

from smal_model import joints

from . import skeleton as at

FLESH = 0.85  # of a bone's radius counts as solid
_TRUNK = (1, 2, 3, 4, 5, 6, 15)


class Capsules:
    """The bones of a body under its shape space.

    Depths are those of points along each limb's two lower segments and paw, and of the head, in the
    trunk, the neck and the other legs; what is there at rest does not count.
    """

    def __init__(self, rest, joint_regressor, shapedirs):
        """rest: (V, 3); joint_regressor: (J, V); shapedirs: (K, V, 3)."""
        self.bones = np.array([b[0] for b in at.bones()])
        ends = np.array([[b[1], b[2]] for b in at.bones()]).reshape(-1, 3)
        self.radius = FLESH * np.array([b[3:] for b in at.bones()])  # (N, 2)
        square = ((ends[:, None] - rest[None]) ** 2).sum(-1)
        near = np.argsort(square, 1)[:, :40]  # an end moves as the skin round it does
        self.ends = ends
        self.end_directions = shapedirs[:, near].mean(2)  # (K, 2 N, 3)
        self.joints = joint_regressor @ rest
        self.joint_directions = np.einsum("jv,kvc->kjc", joint_regressor, shapedirs)
        depth = np.zeros(len(at.PARENTS), int)  # of each joint in the skeleton
        for joint, parent in enumerate(at.PARENTS[1:], 1):
            depth[joint] = depth[parent] + 1
        parents = np.array(at.PARENTS)
        levels = (np.flatnonzero(depth == n) for n in range(1, depth.max() + 1))
        self.levels = [(level, parents[level]) for level in levels]
        leg_of = np.full(len(at.PARENTS), -1)
        for number, leg in enumerate(at.LEGS):
            leg_of[list(leg)] = number
        upper = [leg[0] for leg in at.LEGS]
        probes = [i for i, j in enumerate(self.bones) if leg_of[j] >= 0 and j not in upper]
        probes += [i for i, j in enumerate(self.bones) if j == joints.HEAD]
        solids = [i for i, j in enumerate(self.bones) if j in _TRUNK or leg_of[j] >= 0]
        self.probes, self.solids = np.array(probes), np.array(solids)
        own, other = leg_of[self.bones[self.probes]], leg_of[self.bones[self.solids]]
        same = (own[:, None] == other[None]) & (own[:, None] >= 0)
        head = self.bones[self.probes] == joints.HEAD
        of_neck = head[:, None] & (self.bones[self.solids] == joints.NECK)[None]
        self.counted = ~(same | of_neck)  # (P, S)
        self.at_rest = self._depths(np.zeros((len(at.PARENTS), 3)), np.zeros(len(shapedirs)))

    def _place(self, angles, shape):
        """(N, 2, 3) ends of the bones of a posed body."""
        count = len(self.joint_directions)
        rest = self.joints + np.tensordot(shape[:count], self.joint_directions, 1)  # (J, 3)
        ends = self.ends + np.tensordot(shape[:count], self.end_directions, 1)
        turns = Rotation.from_rotvec(angles).as_matrix()
        turns[0] = np.eye(3)
        place = np.zeros_like(rest)
        for joint, parent in self.levels:
            turn = turns[parent]
            place[joint] = place[parent] + at.turned(turn, rest[joint] - rest[parent])
            turns[joint] = turn @ turns[joint]
        of_end = np.repeat(self.bones, 2)
        moved = at.turned(turns[of_end], ends - rest[of_end]) + place[of_end]
        return moved.reshape(-1, 2, 3)

    def _depths(self, angles, shape):
        """(P, 3 points, S) how deep points along the probes are in the solids; negative outside."""
        ends = self._place(angles, shape)
        t = np.array((0.4, 0.7, 1.0))[None, :, None]
        probe = ends[self.probes]
        points = probe[:, :1] + t * (probe[:, 1:] - probe[:, :1])  # (P, 3, 3)
        size = self.radius[self.probes]
        size = size[:, :1] + t[..., 0] * (size[:, 1:] - size[:, :1])  # (P, 3)
        start, along = ends[self.solids, 0], ends[self.solids, 1] - ends[self.solids, 0]  # (S, 3)
        s = ((points[:, :, None] - start) * along).sum(-1) / (along * along).sum(-1)
        s = np.clip(s, 0, 1)  # (P, 3, S)
        distance = at.norm(points[:, :, None] - start - s[..., None] * along)
        thick = self.radius[self.solids]
        thick = thick[:, 0] + s * (thick[:, 1] - thick[:, 0])
        return thick + size[..., None] - distance

    def depth(self, angles: np.ndarray, shape: np.ndarray) -> float:
        """The deepest penetration beyond that at rest.

        Args:
            angles: (35, 3) axis-angles; the root's does not matter.
            shape: (K or more,) coefficients.

        Returns:
            Body units; 0 where nothing touches.
        """
        excess = self._depths(angles, shape) - np.maximum(self.at_rest, 0)
        return max(0.0, float(excess[np.broadcast_to(self.counted[:, None], excess.shape)].max()))
