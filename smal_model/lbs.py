"""Body maths as pure functions: rotations, the kinematic chain, linear blend skinning."""

import torch
from torch.nn import functional as F


def rodrigues(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices of axis-angle vectors.

    The angle is the norm of `axis_angle + 1e-8`, as in the published layers of SMPL and SMAL, so
    that the gradient exists at zero.

    Args:
        axis_angle: (..., 3) radians.

    Returns:
        (..., 3, 3).
    """
    angle = (axis_angle + 1e-8).norm(dim=-1, keepdim=True)  # (..., 1)
    x, y, z = (axis_angle / angle).unbind(-1)
    c, s = angle.cos().squeeze(-1), angle.sin().squeeze(-1)
    t = 1 - c
    rows = (
        t * x * x + c, t * x * y - s * z, t * x * z + s * y,
        t * x * y + s * z, t * y * y + c, t * y * z - s * x,
        t * x * z - s * y, t * y * z + s * x, t * z * z + c,
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def bend(rotations) -> torch.Tensor:
    """(B, 9 (J - 1)): how far the joints but the root, of (B, J, 3, 3), are from the rest pose."""
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (rotations[:, 1:] - eye).flatten(1)


def ancestors(parents) -> torch.Tensor:
    """(R, J) int64: row r tells for each joint the one 2^r steps above, J where there is none.

    Args:
        parents: J ints; the root, joint 0, has -1 and parents come before their children.
    """
    count = len(parents)
    for joint, parent in enumerate(parents):
        if (parent < 0) != (joint == 0) or parent >= joint:
            raise ValueError(
                f"joint {joint} has parent {parent}; expected joint 0 as the one root and parents"
                " before children"
            )
    row = torch.tensor([count, *parents[1:], count])  # nothing is above nothing
    rows: list[torch.Tensor] = []
    while not rows or bool((row < count).any()):
        rows.append(row[:count])
        row = row[row]
    return torch.stack(rows)


def kinematic_chain(rotations, joints, above, scales=None) -> torch.Tensor:
    """Transforms of the joints, relative to the rest pose.

    With scales the local rotation is S_parent^-1 R S: the skin of a joint is scaled, its children's
    is not, though their offsets are.

    Args:
        rotations: (B, J, 3, 3) local rotations.
        joints: (B, J, 3) places at rest.
        above: (R, J) `ancestors`.
        scales: (B, J, 3) per axis of each joint, or None.

    Returns:
        (B, J, 3, 4), which take a rest-pose point bound to the joint to its posed place.
    """
    parents = above[0]
    offset = joints - F.pad(joints, (0, 0, 0, 1))[:, parents]  # (B, J, 3)
    local = rotations
    if scales is not None:
        parent_scales = F.pad(scales, (0, 0, 0, 1), value=1.0)[:, parents]  # (B, J, 3)
        local = local * scales[:, :, None, :] / parent_scales[:, :, :, None]
    chain = torch.cat([local, offset[..., None]], -1)  # (B, J, 3, 4)
    # Recursive doubling: after r rounds a transform spans 2^r joints. A round is one product.
    nothing = torch.eye(3, 4, dtype=chain.dtype, device=chain.device)
    nothing = nothing.expand(len(chain), 1, 3, 4)
    for row in above:
        before = torch.cat([chain, nothing], 1)[:, row]  # (B, J, 3, 4)
        chain = before[..., :3] @ chain + F.pad(before[..., 3:], (3, 0))
    at_rest = F.pad((chain[..., :3] @ joints[..., None]), (3, 0))  # (B, J, 3, 4)
    return chain - at_rest


def skin(verts, transforms, weights) -> torch.Tensor:
    """Linear blend skinning.

    Args:
        verts: (B, V, 3) at rest.
        transforms: (B, J, 3, 4) of `kinematic_chain`.
        weights: (V, J) skinning weights.

    Returns:
        (B, V, 3) posed vertices.
    """
    # Vertices last: sums over long rows instead of a tiny product per vertex.
    blended = (transforms.flatten(2).mT @ weights.mT).unflatten(1, (3, 4))  # (B, 3, 4, V)
    return ((blended[:, :, :3] * verts.mT[:, None]).sum(2) + blended[:, :, 3]).mT
