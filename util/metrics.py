"""How well a prediction fits: PCK of keypoints, IoU of silhouettes, 3D error after alignment.

One value per image; no input is changed. A mean over images leaves NaN out (`torch.nanmean`).
"""

import torch

SQUARINGS = 40  # of a matrix, to bring out its first eigenvector
GROUPS = {  # the 20 keypoints by part of the body
    "legs": tuple(range(12)),
    "tail": (12, 13),
    "ears": (14, 15, 18, 19),
    "face": (16, 17),
}


def pck(
    predicted: torch.Tensor,
    keypoints: torch.Tensor,
    mask_area: torch.Tensor,
    threshold: float = 0.15,
    group: str | None = None,
) -> torch.Tensor:
    """Fraction of the visible keypoints nearer than threshold * sqrt(mask area) to their label.

    Args:
        predicted: (B, K or more, 2), row and column in pixels; the first K are compared.
        keypoints: (B, K, 3), row, column, visible (above 0).
        mask_area: (B,), sum of the mask, square pixels.
        threshold: fraction of the mask's side.
        group: a name of `GROUPS`, or None for all keypoints.

    Returns:
        (B,) in [0, 1]; NaN where none is visible. A prediction of NaN counts as missed.
    """
    batch, count = keypoints.shape[:2]
    if keypoints.shape != (batch, count, 3) or mask_area.shape != (batch,):
        shapes = f"keypoints {tuple(keypoints.shape)} and mask_area {tuple(mask_area.shape)}"
        raise ValueError(f"{shapes}, expected (B, K, 3) and (B,)")
    shape = predicted.shape
    if len(shape) != 3 or shape[0] != batch or shape[1] < count or shape[2] != 2:
        raise ValueError(f"predicted {tuple(shape)}, expected ({batch}, {count} or more, 2)")
    if group is not None and group not in GROUPS:
        raise ValueError(f"unknown group '{group}': choose one of {', '.join(GROUPS)}")

    chosen = list(range(count) if group is None else GROUPS[group])
    distance = (predicted[:, chosen] - keypoints[:, chosen, :2]).norm(dim=-1)  # (B, k)
    visible = keypoints[:, chosen, 2] > 0  # (B, k)
    hit = (distance < threshold * mask_area.sqrt()[:, None]) & visible  # (B, k)
    return hit.sum(1) / visible.sum(1)  # (B,), 0 / 0 is NaN


def iou(silhouette: torch.Tensor, mask: torch.Tensor, border_mask: torch.Tensor) -> torch.Tensor:
    """Overlap of the rendered silhouette with the mask, by the published protocol.

    Where border_mask is 0 (outside the photograph) the mask is unknown: taken as the silhouette.

    Args:
        silhouette, mask, border_mask: (B, H, W) in [0, 1], thresholded nowhere.

    Returns:
        (B,): sum of the product / number of pixels where either is above 0; NaN where none is.
    """
    if silhouette.ndim != 3 or not silhouette.shape == mask.shape == border_mask.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (silhouette, mask, border_mask))
        raise ValueError(
            f"silhouette, mask and border_mask are {shapes}, expected the same (B, H, W)"
        )
    label = torch.where(border_mask > 0, mask, silhouette)  # (B, H, W)
    both = (silhouette * label).sum((1, 2))  # (B,)
    either = (silhouette + label > 0).sum((1, 2))  # (B,)
    return both / either


def aligned_error(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean distance per point after the best similarity transform (Umeyama, PAMI 1991).

    PA-MPVPE of vertices, PA-MPJPE of joints. No reflection. Gradients take the transform as given.

    Args:
        predicted, true: (B, N, 3).

    Returns:
        (B,), in the units of `true`.
    """
    if predicted.ndim != 3 or predicted.shape != true.shape or predicted.shape[-1] != 3:
        shapes = f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)}"
        raise ValueError(f"{shapes}, expected two of the same shape (B, N, 3)")
    mean_p, mean_t = predicted.mean(1, keepdim=True), true.mean(1, keepdim=True)
    p, t = (predicted - mean_p).double(), (true - mean_t).double()
    product = (p.transpose(1, 2) @ t).detach().nan_to_num(0, 0, 0)  # what is NaN stays so below
    rotation, trace = best_rotation(product)
    scale = trace / p.detach().pow(2).sum((1, 2)).clamp_min(1e-20)  # (B,)
    fitted = scale[:, None, None] * p @ rotation.transpose(1, 2)
    return (fitted - t).norm(dim=-1).mean(1).to(true.dtype)


def best_rotation(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotations R that turn points p nearest to points t (Horn, JOSA A 1987).

    As a unit quaternion each is the first eigenvector of a matrix 4 x 4, which powers of the matrix
    bring out: unlike `torch.linalg.svd` and `eigh` that asks a GPU for nothing.

    Args:
        product: (B, 3, 3) float64, sums over the points of p_i t_j.

    Returns:
        (B, 3, 3) R, and (B,) the sum over the points of t . R p.
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = product.flatten(1).unbind(1)
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B, 4, 4)
    one = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    power = matrix + one * matrix.norm(dim=(1, 2), keepdim=True)  # all eigenvalues 0 or more
    for _ in range(SQUARINGS):
        power = power / power.norm(dim=(1, 2), keepdim=True).clamp_min(1e-200)
        power = power @ power
    longest = power.norm(dim=1).argmax(1)[:, None, None].expand(-1, 4, 1)
    q = power.gather(2, longest)  # (B, 4, 1)
    q = q / q.norm(dim=1, keepdim=True).clamp_min(1e-200)
    trace = (q.mT @ matrix @ q)[:, 0, 0]
    w, x, y, z = q[..., 0].unbind(1)
    rotation = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return torch.stack([torch.stack(row, 1) for row in rotation], 1), trace
