"""The camera: perspective along +z, no rotation, a plane that the 224-pixel crop spans from -1 to 1."""

import torch

from smal_model.joints import KEYPOINT_JOINTS

FOCAL = 2700.0  # at scale 0, in pixels of the 224 crop
DISTANCE = 20.0  # from the camera to the origin of the body's space
HALF_PLANE = 112.0  # half the crop, in pixels
CROP = 224  # the side of the crop in which labels, keypoints and metrics live


def project(points: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Perspective projection to the image plane.

    points: (B, N, 3), x right, y up, z away from the viewer, body units. scale: (B, 1) predicted scale s; the focal length
    is 2700 + 2700 s pixels. Returns (B, N, 3): x right and y up in [-1, 1] inside the picture (not clamped), and the depth.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or tuple(scale.shape) != (points.shape[0], 1):
        raise ValueError(f"points {tuple(points.shape)} and scale {tuple(scale.shape)}, expected (B, N, 3) and (B, 1)")
    depth = (DISTANCE + points[..., 2:]).clamp_min(1e-6)  # (B, N, 1)
    focal = FOCAL + FOCAL * scale[:, None]  # (B, 1, 1)
    return torch.cat([focal * points[..., :2] / (HALF_PLANE * depth), depth], -1)


def to_pixels(xy: torch.Tensor, image_size: int = CROP) -> torch.Tensor:
    """Image plane (..., 2 or more: x right, y up) to pixels (..., 2): row from the top, column from the left."""
    half = image_size / 2
    return torch.stack([image_size - half * (xy[..., 1] + 1), half * (xy[..., 0] + 1)], -1)


def keypoints_row_col(joints: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The 20 labelled keypoints of a body in the crop. joints: (B, 41, 3) as SMAL gives them; returns (B, 20, 2) row, column."""
    return to_pixels(project(joints[:, list(KEYPOINT_JOINTS)], scale))
