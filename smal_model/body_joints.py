"""The joints of a posed body without its vertices."""

import torch
from torch import nn
from torch.nn import functional as F

from . import lbs
from .body_files import NUM_BETAS
from .smal import SMAL


class BodyJoints(nn.Module):
    """What `SMAL.forward` gives as joints, for a small part of the work.

    A joint is a sum of skinned vertices with fixed weights g. Skinning is linear in the vertices,
    so that sum can be taken first: joint = sum over bones k of R_k m_k + c_k t_k, with m_k = sum
    over vertices of g w_k v and c_k = sum of g w_k. And m_k is linear in the shape and in what the
    pose bends. A joint hangs on few bones.

    Args:
        smal: the body; its sizes and directions are taken over as they are now.
    """

    of_joint: torch.Tensor
    of_bone: torch.Tensor
    fraction: torch.Tensor
    total: torch.Tensor
    moments: torch.Tensor
    moment_dirs: torch.Tensor
    bend_dirs: torch.Tensor
    rest: torch.Tensor
    rest_dirs: torch.Tensor

    def __init__(self, smal: SMAL):
        super().__init__()
        self.smal = smal
        landmarks = F.one_hot(smal.landmarks, smal.num_verts).to(smal.J_regressor)
        sums = torch.cat([smal.J_regressor, landmarks])  # (J + 6, V)
        held = sums[:, None] * smal.weights.T  # (J + 6, J, V)
        pairs = (held != 0).any(-1).nonzero()  # (P, 2) a joint and a bone on which it hangs
        held = held[pairs[:, 0], pairs[:, 1]]  # (P, V)

        def moved(directions):  # (n, V * 3) of the vertices to (n, P * 3) of the moments
            return (held @ directions.view(-1, smal.num_verts, 3)).flatten(1)

        shape = smal.shapedirs[:NUM_BETAS]
        at_rest = smal.J_regressor @ shape.view(-1, smal.num_verts, 3)  # (20, J, 3)
        bends = smal.posedirs if smal.has_posedirs else smal.posedirs[:0]
        constants = {
            "of_joint": F.one_hot(pairs[:, 0], len(sums)).to(held).T,  # (J + 6, P)
            "of_bone": pairs[:, 1],
            "fraction": held.sum(1, keepdim=True),  # (P, 1)
            "total": sums.sum(1, keepdim=True),  # (J + 6, 1), 1 but for rounding
            "moments": held @ smal.template,  # (P, 3)
            "moment_dirs": moved(shape),
            "bend_dirs": moved(bends),
            "rest": smal.J_regressor @ smal.template,  # (J, 3)
            "rest_dirs": at_rest.flatten(1),  # (20, J * 3)
        }
        for name, value in constants.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(self, betas, pose, trans, betas_logscale=None) -> torch.Tensor:
        """(B, J + 6, 3) joints, then landmarks, of parameters as `SMAL.forward` takes them."""
        rest = self.rest + (betas @ self.rest_dirs).unflatten(1, (-1, 3))  # (B, J, 3)
        moments = self.moments + (betas @ self.moment_dirs).unflatten(1, (-1, 3))  # (B, P, 3)
        rotations = lbs.rodrigues(pose.unflatten(1, (-1, 3)))  # (B, J, 3, 3)
        if len(self.bend_dirs):
            bend = lbs.bend(rotations)
            moments = moments + (bend @ self.bend_dirs).unflatten(1, (-1, 3))
        transforms = self.smal.transforms(rotations, rest, betas_logscale)[:, self.of_bone]
        parts = (transforms[..., :3] @ moments[..., None]).squeeze(-1)  # (B, P, 3)
        parts = parts + self.fraction * transforms[..., 3]
        return self.of_joint @ parts + self.total * trans[:, None]
