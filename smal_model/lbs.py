"""Body maths as pure functions: rotations, the kinematic chain, linear blend skinning."""

import torch


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


def tree_levels(parents) -> list[list[int]]:
    """Joints by depth: level 0 holds the root, level k the joints k steps away.

    Args:
        parents: J ints; the root, joint 0, has -1 and parents come before their children.
    """
    depth: list[int] = []
    for joint, parent in enumerate(parents):
        if (parent < 0) != (joint == 0) or parent >= joint:
            raise ValueError(
                f"joint {joint} has parent {parent}; expected joint 0 as the one root and parents"
                " before children"
            )
        depth.append(depth[parent] + 1 if joint else 0)
    return [[j for j, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]


def kinematic_chain(rotations, joints, parents, levels, scales=None) -> torch.Tensor:
    """Transforms of the joints, relative to the rest pose.

    With scales the local rotation is S_parent^-1 R S: the skin of a joint is scaled, its children's
    is not, though their offsets are.

    Args:
        rotations: (B, J, 3, 3) local rotations.
        joints: (B, J, 3) places at rest.
        parents: (J,) int64; the root's is ignored.
        levels: joints by depth, of `tree_levels`.
        scales: (B, J, 3) per axis of each joint, or None.

    Returns:
        (B, J, 3, 4), which take a rest-pose point bound to the joint to its posed place.
    """
    local = rotations
    offset = joints - joints[:, parents]  # (B, J, 3)
    offset = torch.cat([joints[:, :1], offset[:, 1:]], 1)
    if scales is not None:
        ones = torch.ones_like(scales[:, :1])
        parent_scales = torch.cat([ones, scales[:, parents][:, 1:]], 1)  # (B, J, 3)
        local = local * scales[:, :, None, :] / parent_scales[:, :, :, None]

    # One batched product per depth of the tree instead of one per joint.
    world_r, world_t, order = [local[:, :1]], [offset[:, :1]], list(levels[0])
    for level in levels[1:]:
        above = [order.index(int(p)) for p in parents[level].tolist()]
        r, t = (
            torch.cat(world_r, 1)[:, above],
            torch.cat(world_t, 1)[:, above],
        )  # (B, n, 3, 3), (B, n, 3)
        world_r.append(r @ local[:, level])
        world_t.append((r @ offset[:, level, :, None]).squeeze(-1) + t)
        order += level
    back = torch.argsort(torch.tensor(order, device=joints.device))
    r, t = torch.cat(world_r, 1)[:, back], torch.cat(world_t, 1)[:, back]  # (B, J, 3, 3), (B, J, 3)
    t = t - (r @ joints[..., None]).squeeze(-1)
    return torch.cat([r, t[..., None]], -1)  # (B, J, 3, 4)


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
