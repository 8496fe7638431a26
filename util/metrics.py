"""How well a prediction fits its picture: PCK of the keypoints, IoU of the silhouette. One value per image; nothing
that comes in is changed. A mean over images leaves NaN out (`torch.nanmean`)."""

import torch

from smal_model.joints import NUM_KEYPOINTS

GROUPS = {
    "legs": tuple(range(12)),
    "tail": (12, 13),
    "ears": (14, 15, 18, 19),
    "face": (16, 17),
}


def pck(
    pred_row_col: torch.Tensor,
    keypoints: torch.Tensor,
    mask_area: torch.Tensor,
    threshold: float = 0.15,
    group: str | None = None,
) -> torch.Tensor:
    """Share of the visible keypoints nearer than threshold * sqrt(mask area) to their label.

    pred_row_col (B, K, 2), K >= 20: row and column in pixels of the crop, of which the first 20 are compared.
    keypoints (B, 20, 3): row, column, visible (above 0). mask_area (B,): sum of the mask, square pixels. group: one of
    `GROUPS`, or None for all keypoints. Returns (B,) in [0, 1]; NaN means that no keypoint of the group is visible.
    A predicted place that is not a number counts as missed.
    """
    batch = len(keypoints)
    if keypoints.shape != (batch, NUM_KEYPOINTS, 3) or mask_area.shape != (batch,):
        raise ValueError(
            f"keypoints {tuple(keypoints.shape)} and mask_area {tuple(mask_area.shape)}, expected (B, 20, 3) and (B,)"
        )
    shape = pred_row_col.shape
    if len(shape) != 3 or shape[0] != batch or shape[1] < NUM_KEYPOINTS or shape[2] != 2:
        raise ValueError(f"pred_row_col {tuple(shape)}, expected ({batch}, 20 or more, 2)")
    if group is not None and group not in GROUPS:
        raise ValueError(f"unknown group '{group}': choose one of {', '.join(GROUPS)}")

    chosen = list(range(NUM_KEYPOINTS) if group is None else GROUPS[group])
    distance = (pred_row_col[:, chosen] - keypoints[:, chosen, :2]).norm(dim=-1)  # (B, k)
    visible = keypoints[:, chosen, 2] > 0  # (B, k)
    hit = (distance < threshold * mask_area.sqrt()[:, None]) & visible  # (B, k)
    return hit.sum(1) / visible.sum(1)  # (B,), 0 / 0 is NaN


def iou(silhouette: torch.Tensor, mask: torch.Tensor, border_mask: torch.Tensor) -> torch.Tensor:
    """Overlap of the rendered silhouette with the mask, inside the photograph.

    All (B, H, W) in [0, 1], thresholded nowhere. Where border_mask is 0 (outside the photograph) the mask is unknown
    and taken to be the silhouette. Returns (B,): the sum of the product over the number of pixels in which either is
    above 0; NaN where no pixel is.
    """
    if silhouette.ndim != 3 or not silhouette.shape == mask.shape == border_mask.shape:
        raise ValueError(
            f"silhouette {tuple(silhouette.shape)}, mask {tuple(mask.shape)} and border_mask "
            f"{tuple(border_mask.shape)}, expected three of the same shape (B, H, W)"
        )
    label = torch.where(border_mask > 0, mask, silhouette)  # (B, H, W)
    both = (silhouette * label).sum((1, 2))  # (B,)
    either = (silhouette + label > 0).sum((1, 2))  # (B,)
    return both / either


def aligned_error(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean distance per point after the similarity (rotation, scale, translation) that fits `predicted` best to `true`, in the
    units of `true`: PA-MPVPE of vertices, PA-MPJPE of joints. Both (B, N, 3); returns (B,). Umeyama, PAMI 1991; no reflection.
    """
    if predicted.ndim != 3 or predicted.shape != true.shape or predicted.shape[-1] != 3:
        shapes = f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)}"
        raise ValueError(f"{shapes}, expected two of the same shape (B, N, 3)")
    mean_p, mean_t = predicted.mean(1, keepdim=True), true.mean(1, keepdim=True)
    p, t = (predicted - mean_p).double(), (true - mean_t).double()
    u, s, vh = torch.linalg.svd(t.transpose(1, 2) @ p)  # (B, 3, 3)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.det(u @ vh).sign()
    rotation = u * sign[:, None] @ vh  # (B, 3, 3)
    scale = (s * sign).sum(1) / p.pow(2).sum((1, 2)).clamp_min(1e-20)  # (B,)
    fitted = scale[:, None, None] * p @ rotation.transpose(1, 2)
    return (fitted - t).norm(dim=-1).mean(1).to(true.dtype)
