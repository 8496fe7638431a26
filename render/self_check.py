"""A backend against plain PyTorch on a device, in a few small scenes; see `render.check`."""

from types import ModuleType

import torch
from torch import Tensor

from render import torch_reference as reference

NAN = float("nan")


def compare(module: ModuleType, device: torch.device) -> str | None:
    """What is wrong with a backend's module on a device, as words that follow "it"; None: nothing.

    Silhouettes must be within 1e-4 of the reference's, gradients within 1e-3 of their largest,
    faces equal but within 1e-6 of an edge, and two silhouettes within 1e-5.
    """
    for verts, faces, size, supersample in _scenes(device):
        blur = 1e-3, 9.2e-3
        silhouette, grad = _soft(module, verts, faces, size, *blur)
        again, again_grad = _soft(module, verts, faces, size, *blur)
        expected, expected_grad = _soft(reference, verts, faces, size, *blur)
        largest = float(expected_grad.abs().max()) if grad.numel() else 0.0
        fine = size[0] * supersample, size[1] * supersample
        covered = module.coverage(verts, faces, size, supersample)
        face, depth, bary = module.rasterize(verts, faces, fine)
        samples = (face >= 0).to(verts.dtype).view(-1, size[0], supersample, size[1], supersample)
        found = {
            "silhouettes": _differ(silhouette, expected, 1e-4),
            "gradients": _differ(grad, expected_grad, 1e-3 * largest),
            "repeated silhouettes": _differ(again, silhouette, 1e-5),
            "repeated gradients": _differ(again_grad, grad, 1e-4 * largest),
            "coverage": _differ(covered, samples.mean((2, 4)), 1e-6),
            "depths": not depth.isfinite().all(),
            "barycentrics": not bary.isfinite().all(),
            "nearest faces": _other_faces(verts, faces, fine, face),
        }
        wrong = ", ".join(name for name, differs in found.items() if differs)
        if wrong:
            return f"gives wrong {wrong} in a scene of {len(faces)} faces at {size} pixels"
    return None


def _scenes(device: torch.device) -> list[tuple[Tensor, Tensor, tuple[int, int], int]]:
    """Vertices, faces, image size and samples per pixel and axis of each scene."""
    random = torch.Generator().manual_seed(1)
    soup = 1.1 * (2 * torch.rand(2, 200, 1, 3, generator=random) - 1)
    soup = soup + 0.15 * torch.randn(2, 200, 3, 3, generator=random)
    soup[..., 2] += 3
    soup = soup.flatten(1, 2)  # (2, 600, 3)
    one = torch.tensor([[[-0.7, -0.6, 2.0], [0.8, -0.5, 2.0], [0.1, 0.7, 2.0]]])
    not_a_number, behind, crossing = one.clone(), one.clone(), one.clone()
    not_a_number[0, 1, 1], behind[..., 2], crossing[0, 0, 2] = NAN, -1.0, -1.7
    odd = torch.cat([one, not_a_number, behind, crossing + 0.2], 1)  # (1, 12, 3)
    scenes = [(soup, (33, 37), 2), (one, (8, 8), 2), (one, (1, 5), 3), (odd, (20, 20), 3)]
    scenes.append((soup[:0], (6, 6), 2))
    faces = torch.arange(600).view(-1, 3)
    return [(v.to(device), faces[: v.shape[1] // 3].to(device), size, n) for v, size, n in scenes]


def _soft(module: ModuleType, verts: Tensor, faces: Tensor, size, *blur) -> tuple[Tensor, Tensor]:
    """Silhouette and the gradient of a weighted sum."""
    with torch.enable_grad():
        verts = verts.detach().clone().requires_grad_()
        silhouette = module.soft_silhouette(verts, faces, size, *blur)
        weights = torch.linspace(0.2, 1, silhouette.numel(), device=verts.device)
        (grad,) = torch.autograd.grad((silhouette.flatten() * weights).sum(), verts)
    return silhouette.detach(), grad


def _differ(result: Tensor, expected: Tensor, within: float) -> bool:
    return not bool(((result - expected).abs() <= within).all())


def _other_faces(verts: Tensor, faces: Tensor, size: tuple[int, int], face: Tensor) -> bool:
    """Whether faces differ from the reference's farther than 1e-6 from an edge of either."""
    expected, _, _ = reference.rasterize(verts, faces, size)
    image, row, column = (face != expected).nonzero(as_tuple=True)
    points = reference._pixel_centres(row, column, size, verts)  # (N, 2)
    squared = verts.new_full((len(image),), torch.inf)
    for index in (face, expected):
        index = index[image, row, column]
        corners = verts[image[:, None], faces[index.clamp(min=0)]]  # (N, 3, 3)
        near = reference._squared_distance(points, corners[..., :2])
        squared = torch.where(index >= 0, torch.minimum(squared, near), squared)
    return bool((squared > 1e-12).any())
