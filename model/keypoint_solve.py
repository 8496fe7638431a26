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


class Carried(nn.Module):
    """Points that a body's bones carry, and how they move with its parameters.

    Args:
        smal: the body.
        weights: (N, J) how much of each point each bone carries; rows have sum 1.
        shape: (N, 3, 20) how betas move the points at rest.
    """

    weights: torch.Tensor
    shape: torch.Tensor
    moved: torch.Tensor
    ancestors: torch.Tensor
    at_rest: torch.Tensor
    lengthen: torch.Tensor

    def __init__(self, smal: SMAL, weights: torch.Tensor, shape: torch.Tensor):
        super().__init__()
        below = torch.eye(smal.num_joints)  # (J, J) 1 where the column's joint turns the row's bone
        for joint, parent in enumerate(smal.parents.tolist()[1:], 1):  # parents come first
            below[joint] += below[parent]
        at_rest = torch.einsum("jv,vcn->jcn", smal.J_regressor, shape_directions(smal))
        constants = {
            "weights": weights,
            "shape": shape,
            "moved": weights @ below,  # (N, J) how much of a joint's turn moves the point
            "ancestors": smal.ancestors,
            "at_rest": at_rest,  # (J, 3, 20) how betas move the joints at rest, and from parent to
            "lengthen": torch.cat([at_rest[:1], at_rest[1:] - at_rest[smal.parents[1:]]]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, rows, zoom, points, joints, world) -> torch.Tensor:
        """Derivatives by turns of the joints in space, moves, log of the focal length, and betas.

        Args:
            rows: (B, N, R, 3) derivatives of what is measured by the point.
            zoom: (B, N, R) of what is measured by the log of the focal length.
            points: (B, N, 3). joints: (B, J or more, 3).
            world: (B, J, 3, 3) rotations of the joints.

        Returns:
            (B, N R, 3 J + 4 + 20).
        """
        count = world.shape[1]
        arm = points[:, :, None] - joints[:, None, :count]  # (B, N, J, 3)
        arm = (arm * self.moved[..., None])[:, :, None]
        by_turns = torch.linalg.cross(arm, rows[:, :, :, None].expand(-1, -1, -1, count, -1))
        by_moves = torch.cat([rows, zoom[..., None]], -1)  # (B, N, R, 4)
        longer = (self.above(world) @ self.lengthen).flatten(2)  # (B, J, 60)
        turned = (self.weights @ world.flatten(2)).unflatten(2, (3, 3))  # (B, N, 3, 3)
        carried = (
            self.moved @ longer - self.weights @ (world @ self.at_rest).flatten(2)
        ).unflatten(2, (3, -1))
        by_betas = rows @ (carried + turned @ self.shape)  # (B, N, R, 20)
        return torch.cat([by_turns.flatten(3), by_moves, by_betas], -1).flatten(1, 2)

    def above(self, world: torch.Tensor) -> torch.Tensor:
        """(B, J, 3, 3) rotations of the joints' parents; the root has none above it."""
        still = torch.eye(3, dtype=world.dtype, device=world.device).expand(len(world), 1, 3, 3)
        return torch.cat([world, still], 1)[:, self.ancestors[0]]


def shape_directions(smal: SMAL) -> torch.Tensor:
    """(V, 3, 20) how betas move the vertices at rest."""
    return smal.shapedirs[:NUM_BETAS].view(NUM_BETAS, smal.num_verts, 3).permute(1, 2, 0)


def world_rotations(pose: torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
    """(B, J, 3, 3) rotations of the joints in space, of pose (B, 3 J)."""
    rotations = rodrigues(pose.unflatten(1, (-1, 3)))
    return kinematic_chain(rotations, torch.zeros_like(rotations[..., 0]), ancestors)[..., :3]


def view_rows(plane: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(B, N, 2, 3) derivatives of projected points (util.camera) by the points.

    Args:
        plane: (B, N, 3) projected, and their depth. scale: (B, 1).
    """
    depth = plane[..., 2:].clamp_min(1)
    gain = FOCAL * (1 + scale[:, None]) / (HALF_CROP * depth)
    zero = torch.zeros_like(gain)
    x, y, _ = plane.split(1, -1)
    return torch.stack(
        [torch.cat([gain, zero, -x / depth], -1), torch.cat([zero, gain, -y / depth], -1)], -2
    )


def not_too_near(moves: torch.Tensor, joints: torch.Tensor) -> torch.Tensor:
    """Moves (B, 3 or more) that leave the root of joints (B, J, 3) NEAREST before the camera."""
    near = NEAREST - DISTANCE - joints[:, :1, 2]  # (B, 1) to go at least
    return torch.cat([moves[:, :2], torch.maximum(moves[:, 2:3], near), moves[:, 3:]], 1)


def solve_definite(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, N, K) the x of matrix x = right, by Cholesky's factors; NaN where there are none.

    A CUDA graph can record it, which it cannot `torch.linalg.solve`.

    Args:
        matrix: (B, N, N) symmetric, positive definite. right: (B, N, K).
    """
    factor, wrong = torch.linalg.cholesky_ex(matrix.detach())
    factor = factor.where(wrong[:, None, None] == 0, torch.nan)

    def solve(y: torch.Tensor) -> torch.Tensor:
        half = torch.linalg.solve_triangular(factor, y, upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)

    x = solve(right.detach())
    return x + solve(right - matrix @ x)  # of which both derivatives are x's


class KeypointSolve(nn.Module):
    """One step of an iterated Kalman update: prior at the estimate, measured by the heat maps.

    Minimises |x|^2 / prior + |seen - projected(x)|^2 / noise for small turns of all joints, moves
    of the body, focal length and betas x, with the derivatives of rigid bones. A keypoint's noise
    is the spread of its heat map, so one that is not seen pulls at nothing. The widths of the prior
    and the factors of the noise are learned.

    Args:
        smal: the body.
    """

    log_rotations: torch.Tensor
    log_moves: torch.Tensor
    log_betas: torch.Tensor
    log_noise: torch.Tensor

    def __init__(self, smal: SMAL):
        super().__init__()
        count, shape = smal.num_joints, shape_directions(smal)
        at_rest = torch.einsum("jv,vcn->jcn", smal.J_regressor, shape)  # (J, 3, 20)
        bones, points = [], []
        for k in KEYPOINT_JOINTS:  # a joint is moved by the bones before it
            vertex = int(smal.landmarks[k - count]) if k >= count else None
            bone = smal.parents[k] if vertex is None else smal.weights[vertex].argmax()
            bones.append(int(bone))
            points.append(at_rest[k] if vertex is None else shape[vertex])
        self.carried = Carried(smal, torch.eye(count)[bones], torch.stack(points))
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
        world = world_rotations(pose.detach(), self.carried.ancestors)  # (B, J, 3, 3)
        derivative = self.derivative(world, joints.detach(), plane.detach(), scale.detach())
        prior = torch.cat([self.log_rotations.repeat_interleave(3), self.log_moves, self.log_betas])
        spread = derivative * (2 * prior).exp()  # (B, 40, P)
        noise = keypoints.variance.detach() * (2 * self.log_noise).exp()  # (B, 20)
        seen = spread @ derivative.mT + noise.repeat_interleave(2, 1).diag_embed()  # (B, 40, 40)
        step = (spread.mT @ solve_definite(seen, missing[..., None])).squeeze(-1)  # (B, P)
        # a body that crosses the camera has no derivative to follow: it stays
        step = torch.where(step.isfinite(), step, 0)
        sizes = 3 * world.shape[1], MOVES, NUM_BETAS
        turns, moves, shape = step.clamp(-LONGEST, LONGEST).split(sizes, 1)
        moves = not_too_near(moves, joints.detach())
        # a turn in space, before the joint's own rotation, as its parent sees it
        turns = self.carried.above(world).mT @ turns.unflatten(1, (-1, 3, 1))  # (B, J, 3, 1)
        pose = compose(turns.squeeze(-1), pose.unflatten(1, (-1, 3))).flatten(1)
        scale = (1 + scale) * moves[:, 3:].exp() - 1
        return scale, trans + moves[:, :3], pose, betas + shape

    def derivative(self, world, joints, plane, scale) -> torch.Tensor:
        """(B, 40, 3 J + 4 + 20) of the projected keypoints x, y by the parameters of a step.

        Args:
            world: (B, J, 3, 3) rotations of the joints. joints: (B, J + 6, 3).
            plane: (B, 20, 3) projected keypoints and their depth. scale: (B, 1).
        """
        rows, points = view_rows(plane, scale), keypoints_of(joints)
        return self.carried(rows, plane[..., :2], points, joints, world)


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
