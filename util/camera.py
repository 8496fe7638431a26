"""The camera: perspective along +z, no rotation, a plane that the crop spans from -1 to 1."""

import torch

FOCAL = 2700.0  # at scale 0, in pixels of the crop
DISTANCE = 20.0  # from the camera to the origin of the body's space, body units
CROP = 224  # side in pixels of the crop in which labels, keypoints and metrics live
HALF_CROP = CROP / 2


def project(points: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Perspective projection to the image plane (Li and Lee 2021, section 3.1).

    Args:
        points: (B, N, 3), x right, y up, z away from the viewer, body units.
        scale: (B, 1), predicted scale s; the focal length is 2700 + 2700 s pixels.

    Returns:
        (B, N, 3): x right and y up, in [-1, 1] inside the crop (not clamped), and the depth.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or tuple(scale.shape) != (points.shape[0], 1):
        shapes = f"points {tuple(points.shape)} and scale {tuple(scale.shape)}"
        raise ValueError(f"{shapes}, expected (B, N, 3) and (B, 1)")
    depth = (DISTANCE + points[..., 2:]).clamp_min(1e-6)  # (B, N, 1)
    focal = FOCAL + FOCAL * scale[:, None]  # (B, 1, 1)
    return torch.cat([focal * points[..., :2] / (HALF_CROP * depth), depth], -1)


def to_pixels(xy: torch.Tensor, image_size: int = CROP) -> torch.Tensor:
    """Image plane to pixels.

    Args:
        xy: (..., 2 or more), x right and y up, in [-1, 1] inside the image.
        image_size: side of the square image, pixels.

    Returns:
        (..., 2): row from the top, column from the left.
    """
    half = image_size / 2
    return torch.stack([image_size - half * (xy[..., 1] + 1), half * (xy[..., 0] + 1)], -1)
