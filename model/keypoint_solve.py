"""The most likely body for keypoints that were seen, given the network's answer as a prior."""

import math

import torch
from torch import nn

from smal_model import NUM_BETAS, SMAL
from smal_model.joints import KEYPOINT_JOINTS, NUM_KEYPOINTS, keypoints_of
from smal_model.lbs import kinematic_chain, rodrigues
from util.camera import DISTANCE, FOCAL, HALF_CROP, project

from .keypoint_maps import Keypoints

MOVES = 4  # x, y, z of the body, log of the focal length
LONGEST = 1.0  # step of any parameter
NEAREST = 3.0  # the root may come to the camera, body units
START = {"rotations": 0.25, "moves": 0.4, "betas": 0.4, "noise": 0.3}  # standard deviations


class KeypointSolve(nn.Module):
    """One step of an iterated Kalman update: prior at the estimate, measured by the heat maps.

    Minimises |x|^2 / prior + |seen - projected(x)|^2 / noise for small turns of all joints, moves
    of the body, focal length and betas x, with the derivatives of rigid bones. A keypoint's noise
    is the spread of its heat map, so one that is not seen pulls at nothing. The widths of the prior
    and the factors of the noise are learned.

    Args:
        smal: the body.
    """

    moved: torch.Tensor
    bones: torch.Tensor
    ancestors: torch.Tensor
    joint_betas: torch.Tensor
    point_betas: torch.Tensor
    log_rotations: torch.Tensor
    log_moves: torch.Tensor
    log_betas: torch.Tensor
    log_noise: torch.Tensor

    def __init__(self, smal: SMAL):
        super().__init__()
        count = smal.num_joints
        parents, landmarks = smal.parents.tolist(), smal.landmarks.tolist()
        shape = smal.shapedirs[:NUM_BETAS].view(NUM_BETAS, smal.num_verts, 3).permute(1, 2, 0)
        at_rest = torch.einsum("jv,vcn->jcn", smal.J_regressor, shape)  # (J, 3, 20)
        bones, points = [], []
        for k in KEYPOINT_JOINTS:  # a joint is moved by the bones before it
            vertex = landmarks[k - count] if k >= count else None
            bones.append(parents[k] if vertex is None else int(smal.weights[vertex].argmax()))
            points.append(at_rest[k] if vertex is None else shape[vertex])
        moved = torch.zeros(NUM_KEYPOINTS, count)
        for k, bone in enumerate(bones):
            while True:
                moved[k, bone] = 1
                if bone == 0:
                    break
                bone = parents[bone]
        constants = {
            "moved": moved,  # (20, J) whether a joint's turn moves a keypoint
            "bones": torch.tensor(bones),
            "ancestors": smal.ancestors,
            # (J, 3, 20), (20, 3, 20): how betas lengthen the bones, and put the points on them
            "joint_betas": torch.cat([at_rest[:1], at_rest[1:] - at_rest[smal.parents[1:]]]),
            "point_betas": torch.stack(points) - at_rest[bones],
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        sizes = {"rotations": count, "moves": MOVES, "betas": NUM_BETAS, "noise": NUM_KEYPOINTS}
        for name, size in sizes.items():
            start = torch.full((size,), math.log(START[name]))
            self.register_parameter(f"log_{name}", nn.Parameter(start))

    def forward(self, scale, trans, pose, betas, joints: torch.Tensor, keypoints: Keypoints):
        """The parameters after one step.

        Args:
            scale: (B, 1). trans: (B, 3). pose: (B, 3 J). betas: (B, 20).
            joints: (B, J + 6, 3) of these parameters' body.
            keypoints: what the image shows.

        Returns:
            scale, trans, pose, betas.
        """
        plane = project(keypoints_of(joints), scale)  # (B, 20, 3)
        missing = (keypoints.xy.detach() - plane[..., :2]).flatten(1).clamp(-2, 2)  # (B, 40)
        rotations = rodrigues(pose.detach().unflatten(1, (-1, 3)))  # (B, J, 3, 3)
        nothing = torch.zeros_like(rotations[..., 0])
        world = kinematic_chain(rotations, nothing, self.ancestors)[..., :3]
        derivative = self.derivative(world, joints.detach(), plane.detach(), scale.detach())
        prior = torch.cat([self.log_rotations.repeat_interleave(3), self.log_moves, self.log_betas])
        spread = derivative * (2 * prior).exp()  # (B, 40, P)
        noise = keypoints.variance.detach() * (2 * self.log_noise).exp()  # (B, 20)
        seen = spread @ derivative.mT + noise.repeat_interleave(2, 1).diag_embed()  # (B, 40, 40)
        pull, singular = torch.linalg.solve_ex(seen, missing[..., None])
        step = (spread.mT @ pull).squeeze(-1)  # (B, P)
        # a body that crosses the camera has no derivative to follow: it stays
        step = torch.where((singular[:, None] == 0) & step.isfinite(), step, 0)
        count = rotations.shape[1]
        turns, moves, shape = step.clamp(-LONGEST, LONGEST).split([3 * count, MOVES, NUM_BETAS], 1)
        near = NEAREST - DISTANCE - joints[:, 0, 2].detach()  # (B,) to go at least
        moves = torch.cat(
            [moves[:, :2], torch.maximum(moves[:, 2], near)[:, None], moves[:, 3:]], 1
        )
        # a turn in space, before the joint's own rotation, as its parent sees it
        turns = (self._above(world).mT @ turns.unflatten(1, (-1, 3, 1))).squeeze(-1)  # (B, J, 3)
        pose = compose(turns, pose.unflatten(1, (-1, 3))).flatten(1)
        scale = (1 + scale) * moves[:, 3:].exp() - 1
        return scale, trans + moves[:, :3], pose, betas + shape

    def derivative(self, world, joints, plane, scale) -> torch.Tensor:
        """(B, 40, 3 J + 4 + 20) of the projected keypoints x, y by the parameters of a step.

        Args:
            world: (B, J, 3, 3) rotations of the joints. joints: (B, J + 6, 3).
            plane: (B, 20, 3) projected keypoints and their depth. scale: (B, 1).
        """
        count = world.shape[1]
        depth = plane[..., 2:].clamp_min(1)  # (B, 20, 1)
        gain = FOCAL * (1 + scale[:, None]) / (HALF_CROP * depth)
        zero = torch.zeros_like(gain)
        x, y = plane[..., :1], plane[..., 1:2]
        rows = torch.cat([gain, zero, -x / depth], -1), torch.cat([zero, gain, -y / depth], -1)
        view = torch.stack(rows, -2)  # (B, 20, 2, 3) by the point
        points = keypoints_of(joints)
        arm = points[:, :, None] - joints[:, None, :count]  # (B, 20, J, 3)
        a, b, c = (arm * self.moved[..., None]).unbind(-1)
        none = torch.zeros_like(a)
        turn = torch.stack([none, c, -b, -c, none, a, b, -a, none], -1).unflatten(-1, (3, 3))
        by_turns = (view[:, :, None] @ turn).transpose(2, 3).flatten(3)  # (B, 20, 2, 3 J)
        by_moves = torch.cat([view, plane[..., :2, None]], -1)  # (B, 20, 2, 4)
        longer = self._above(world) @ self.joint_betas  # (B, J, 3, 20)
        on_bone = world[:, self.bones] @ self.point_betas  # (B, 20, 3, 20)
        shape = (self.moved @ longer.flatten(2)).unflatten(2, (3, -1)) + on_bone
        return torch.cat([by_turns, by_moves, view @ shape], -1).flatten(1, 2)

    def _above(self, world: torch.Tensor) -> torch.Tensor:
        """(B, J, 3, 3) rotations of the joints' parents; the root has none above it."""
        still = torch.eye(3, dtype=world.dtype, device=world.device).expand(len(world), 1, 3, 3)
        return torch.cat([world, still], 1)[:, self.ancestors[0]]


def compose(turns: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """(..., 3) the rotation vectors of first `rotations`, then `turns`, both (..., 3)."""
    (w, v), (u, p) = _quaternion(turns), _quaternion(rotations)
    real = w * u - (v * p).sum(-1, keepdim=True)
    imaginary = w * p + u * v + torch.linalg.cross(v, p)
    # the same rotation, and of its two vectors the one on the old one's side
    length = imaginary.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    angle = 2 * torch.atan2(length, real)
    return imaginary * (angle / length)


def _quaternion(vector):
    angle = (vector.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    return (angle / 2).cos(), vector * ((angle / 2).sin() / angle)
