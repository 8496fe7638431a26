"""The most likely body for the keypoints and the outline that an image shows together."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from smal_model import NUM_BETAS, SMAL, MeshHierarchy
from smal_model.joints import NUM_KEYPOINTS, keypoints_of
from smal_model.mesh import vertex_normals
from util.camera import DISTANCE, project

from .keypoint_maps import SHARPNESS, cell_centres
from .keypoint_solve import (
    LONGEST,
    NEAREST,
    Carried,
    KeypointSolve,
    compose,
    not_too_near,
    shape_directions,
    solve_definite,
    view_rows,
    world_rotations,
)
from .outline import FARTHEST, RIM, SHARP, SURE, edge_at, slopes
from .outputs import Answer, Estimate, Prediction

# A round a number: half crops about the body's keypoint within which its map is believed.
ROUNDS = (None, 0.3, 0.2, 0.15, 0.1)
AGAIN = (None, 0.2, 0.1)  # and of the maps that a second look gives
ELSEWHERE = 0.005  # and how much it is believed outside
DOUBT = 2.0  # sharpness of the softmax that gives the variance
# standard deviations at first: turns about a joint's own axes, moves, betas, factors of the noise
START = {"turns": (0.1, 0.3, 0.12), "moves": (0.1, 0.1, 5.0), "betas": 0.9, "noise": 0.5}
EDGE = 0.05  # and of the outline's edge, half crops
SPEED = 30.0  # logs of widths by an image: a step of the optimiser moves them so much further


class BodySolve(nn.Module):
    """The maximum a posteriori body: prior about the network's answer, measured by what is seen.

    Gauss-Newton steps on |x|^2 / prior + |seen - projected(x)|^2 / noise for turns of all joints
    about their own axes, moves of the body and betas x. Measured are the keypoints, and along the
    outline's slope the way to its edge of the vertices on the body's rim. From the second round on
    a heat map is read near the body's keypoint, so that of two peaks the one that fits the others
    counts. The widths of prior and noise are learned, and where `features` are given, how much each
    image changes them.

    A step solves (J' S^-1 J + P^-1) x = J' S^-1 (d + J g) for x, all of the way from the network's
    answer: J (M, P) are the derivatives (`rows`), d what is seen less what the body shows
    (`missing`), S its `variance`, P^-1 the prior's `tightness`, g the way `gone` before. Columns
    are turns (3 for each joint), moves (3) and betas.

    Args:
        smal: the body.
        hierarchy: of its mesh.
        level: of the vertices that are told of the outline.
        features: channels of the pooled feature of an image, or None.
    """

    log_turns: torch.Tensor
    log_moves: torch.Tensor
    log_betas: torch.Tensor
    log_noise: torch.Tensor
    log_edge: torch.Tensor

    def __init__(
        self, smal: SMAL, hierarchy: MeshHierarchy, level: int, features: int | None = None
    ):
        super().__init__()
        self.smal, self.hierarchy, self.level = smal, hierarchy, level
        shape = self._down(shape_directions(smal).flatten(1)[None])[0]  # (V', 60)
        weights = self._down(smal.weights[None])[0]  # (V', J)
        self.carried = Carried(smal, weights, shape.unflatten(1, (3, -1)))
        sizes = {
            "turns": (smal.num_joints, 3),
            "moves": (3,),
            "betas": (NUM_BETAS,),
            "noise": (NUM_KEYPOINTS,),
        }
        for name, size in sizes.items():
            start = torch.as_tensor(START[name]).log().expand(size).clone()
            self.register_parameter(f"log_{name}", nn.Parameter(start))
        self.log_edge = nn.Parameter(torch.tensor(math.log(EDGE)))
        self.doubt = None
        if features is not None:
            outputs = 3 * smal.num_joints + 3 + NUM_BETAS + NUM_KEYPOINTS + 1
            self.doubt = nn.Linear(features, outputs)
            nn.init.zeros_(self.doubt.weight)
            nn.init.zeros_(self.doubt.bias)

    def forward(
        self,
        out: Prediction,
        solve: KeypointSolve,
        look: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Answer:
        """The most likely body, seen by the coarse answer's camera.

        Args:
            out: of the coarse network, with `before`, `keypoints` and `outline`.
            solve: the coarse network's, for the derivatives of keypoints.
            look: gives heat maps (B, 20, H, W) to go on with, by the keypoints (B, 20, 2) of the
                body that fits those of `out`.
        """
        assert out.before is not None and out.keypoints is not None and out.outline is not None
        scale, logscale = out.coarse.scale, out.betas_logscale
        pose, betas = out.before.pose, out.before.betas
        trans = self._seen_with(out.before, scale)
        inside, maps = slopes(out.outline.detach(), SHARP), out.keypoints.maps.detach().flatten(2)
        height, width = out.keypoints.maps.shape[2:]
        centres = cell_centres(height, width, maps)
        prior, noise, edge = self._widths(out)
        tightness = (-2 * prior).exp().diag_embed()  # (B, P, P)
        gone = torch.zeros_like(prior)  # from the network's answer
        for number, context in enumerate(ROUNDS + (AGAIN if look else ())):
            body = self.smal(betas, pose, trans, betas_logscale=logscale)
            if look and number == len(ROUNDS):
                places = project(keypoints_of(body.joints), scale)[..., :2]
                maps = look(places).detach().flatten(2)
            world = world_rotations(pose.detach(), self.carried.ancestors)
            estimate = Estimate(body.verts, body.joints, scale)
            parts = (
                self._keypoints(estimate, world, solve, maps, centres, noise, context),
                self._edge(estimate, world, inside, edge),
            )
            rows, missing, variance = (torch.cat(of, 1) for of in zip(*parts, strict=True))
            rows = self._about_own_axes(rows, world)  # (B, M, P)
            step = _solved(rows, missing, variance, tightness, gone) - gone
            # a body that crosses the camera has no derivative to follow: it stays
            step = torch.where(step.isfinite(), step, 0).clamp(-LONGEST, LONGEST)
            turn, move, shape = step.split([3 * world.shape[1], 3, NUM_BETAS], 1)
            move = not_too_near(move, body.joints.detach())
            gone = gone + torch.cat([turn, move, shape], 1)
            pose = compose(turn.unflatten(1, (-1, 3)), pose.unflatten(1, (-1, 3))).flatten(1)
            trans, betas = trans + move, betas + shape
        body = self.smal(betas, pose, trans, betas_logscale=logscale)
        return Answer(Estimate(body.verts, body.joints, scale), trans, pose, betas)

    def _about_own_axes(self, rows, world) -> torch.Tensor:
        """Derivatives (B, M, P) by turns about the joints' own axes, moves and betas.

        rows: (B, M, 3 J + 4 + 20), by turns about the world's axes, moves, scale and betas.
        """
        count = world.shape[1]
        turns, moves, _, betas = rows.split([3 * count, 3, 1, NUM_BETAS], 2)
        turns = turns.unflatten(2, (count, 1, 3)) @ self.carried.above(world)[:, None]
        return torch.cat([turns.flatten(2), moves, betas], 2)

    def _down(self, x: torch.Tensor) -> torch.Tensor:
        for level in range(self.level):
            x = self.hierarchy.down(x, level)
        return x

    def _seen_with(self, start: Answer, scale) -> torch.Tensor:
        """(B, 3) translations that keep place and size in the image of a camera with `scale`."""
        depth = start.estimate.joints[:, 0, 2] + DISTANCE
        wanted = (depth * ((1 + scale) / (1 + start.estimate.scale))[:, 0]).clamp_min(NEAREST)
        return torch.cat([start.trans[:, :2], (start.trans[:, 2] + wanted - depth)[:, None]], 1)

    def _widths(self, out: Prediction) -> tuple[torch.Tensor, ...]:
        """Logs of standard deviations.

        (B, P) of the prior, (B, 20) factors of the keypoints' noise, (B, 1) of the edge.
        """
        prior = torch.cat([self.log_turns.flatten(), self.log_moves, self.log_betas])
        widths = torch.cat([prior, self.log_noise, self.log_edge[None]])
        widths = widths.expand(len(out.coarse), -1)
        if self.doubt is not None:
            pooled = out.features.pooled.detach()
            pooled = F.layer_norm(pooled, pooled.shape[1:]) / math.sqrt(pooled.shape[1])
            widths = widths + SPEED * self.doubt(pooled)
        return widths.split([len(prior), NUM_KEYPOINTS, 1], 1)

    def _keypoints(
        self, body: Estimate, world, solve: KeypointSolve, maps, centres, log_noise, context
    ):
        """Derivatives (B, 40, 3 J + 4 + 20), what is missing (B, 40), and its variance (B, 40).

        Args:
            world: (B, J, 3, 3) rotations of the joints.
            maps: (B, 20, H W) logits. centres: (H W, 2) of their cells.
            log_noise: (B, 20) factors.
            context: half crops about the body's keypoint within which a map is believed, or None.
        """
        plane = project(keypoints_of(body.joints), body.scale)  # (B, 20, 3)
        near = maps.new_zeros(1, 1, maps.shape[2])
        if context is not None:
            apart = (centres - plane[:, :, None, :2].detach()).square().sum(-1)  # (B, 20, H W)
            near = ((-apart / (2 * context**2)).exp() + ELSEWHERE).log()
        xy = (SHARPNESS * maps + near).softmax(-1) @ centres
        doubtful = (DOUBT * maps + near).softmax(-1)
        mean = doubtful @ centres  # that it differs from xy is doubt, too
        spread = (doubtful @ centres.square() - mean.square() + (mean - xy).square()).mean(-1)
        window = near.softmax(-1)  # no evidence: without it a flat map says nothing
        width = (window @ centres.square() - (window @ centres).square()).mean(-1)
        variance = 1 / (1 / spread.clamp_min(1e-4) - 1 / width).clamp_min(1e-5)
        noise = variance * (2 * log_noise).exp()
        missing = (xy - plane[..., :2]).flatten(1).clamp(-2, 2)
        with torch.no_grad():
            rows = solve.derivative(world, body.joints, plane, body.scale)
        return rows, missing, noise.repeat_interleave(2, 1)

    def _edge(self, body: Estimate, world, inside, log_edge):
        """The same for the way of the rim's vertices to the edge, (B, V', ...)."""
        verts = self._down(body.verts)
        plane = project(verts, body.scale)
        value, slope = edge_at(inside, plane)  # (B, V', 1), (B, V', 2) x right, y up
        with torch.no_grad():
            normals = self._down(vertex_normals(body.verts, self.smal.faces))
            steep = slope.square().sum(-1, keepdim=True)
            length = steep.sqrt().clamp_min(1e-6)
            rim = torch.exp(-((normals[..., 2:] / RIM) ** 2)) * steep / (steep + SURE**2)
            towards = (slope / length)[:, :, None]  # (B, V', 1, 2)
            zoom = (towards @ plane[..., :2, None]).squeeze(-1)  # (B, V', 1)
            rows = towards @ view_rows(plane, body.scale)  # (B, V', 1, 3)
            rows = self.carried(rows, zoom, verts, body.joints, world)
        damped = length / (steep + SURE**2) * (2 / inside.shape[2])  # half crops
        way = (-value * damped).clamp(-FARTHEST, FARTHEST)
        noise = (2 * log_edge).exp() / rim.clamp_min(1e-4).squeeze(-1)  # (B, V')
        return rows, way.squeeze(-1), noise


def _solved(rows, missing, variance, tightness, gone) -> torch.Tensor:
    """(B, P) x of the class' equation; what is measured is taken as linear about where it is."""
    pulls = rows.mT / variance[:, None]  # (B, P, M)
    wanted = missing[..., None] + rows @ gone[..., None]  # (B, M, 1)
    return solve_definite(pulls @ rows + tightness, pulls @ wanted).squeeze(-1)
