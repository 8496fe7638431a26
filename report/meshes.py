"""Meshes and cameras to take away: .obj, .glb, .ply, and JSON and NPZ files that hold all numbers.

Axes, units and file schemas are in docs/conventions.md. In files x points right, y up and z towards
the viewer (right-handed, as in glTF); `file_axes` takes the camera space of
`model.outputs.Estimate`, where z points away, into them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from model.outputs import Estimate
from render import rasterize
from render.shading import CLAY, shade
from smal_model.joints import KEYPOINT_JOINTS, KEYPOINT_NAMES, NAMES
from smal_model.mesh import adjacency, vertex_normals
from util.camera import CROP, DISTANCE, FOCAL
from util.files import atomic_write, write_json

from .overlays import array_of

SCHEMA, VERSION = "coarse-to-fine-animal/estimate", 1
WORLD_TO_CAMERA = np.array(
    [[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, DISTANCE]]
)  # to OpenCV's x right, y down, z ahead
LANDMARKS = ("Nose", "Chin", "REarTip", "LEarTip", "LEye", "REye")
JOINT_NAMES = (
    *NAMES,
    *LANDMARKS,
)  # SMAL's words: its left is the right of the animal that one sees
VISIBILITY_SIZE = 512  # side of the z-buffer that decides which vertices a photograph shows, pixels


@dataclass(frozen=True)
class Photograph:
    """A photograph and the place of the network's crop in it.

    name: file name. width, height: pixels, upright (EXIF orientation applied).
    center: (x, y) of the crop, side: its length; pixels from the photograph's top left corner.
    """

    name: str
    width: int
    height: int
    center: tuple[float, float]
    side: float


def camera_in_photograph(scale: float, center, side: float) -> np.ndarray:
    """The pinhole camera of an estimate in pixels of its photograph.

    Args:
        scale: the estimate's predicted scale.
        center: (x, y) of the crop in the photograph, pixels.
        side: length of the crop, pixels.

    Returns:
        K (3, 3). The top left pixel covers [0, 1] x [0, 1]: its centre is (0.5, 0.5).
    """
    focal = FOCAL * (1 + float(scale)) * float(side) / CROP
    return np.array([[focal, 0, float(center[0])], [0, focal, float(center[1])], [0, 0, 1]])


def file_axes(points) -> np.ndarray:
    """Camera space (..., 3), z away from the viewer, to the axes of files; float32."""
    return array_of(points).astype(np.float32) * np.array([1, 1, -1], np.float32)


def pixels(
    points: np.ndarray, k: np.ndarray, world_to_camera: np.ndarray = WORLD_TO_CAMERA
) -> np.ndarray:
    """Points in the axes of files to a photograph.

    Args:
        points: (N, 3), body units.
        k: (3, 3), pixels.
        world_to_camera: (3, 4), rotation and translation to x right, y down, z ahead.

    Returns:
        (N, 3): column and row in pixels, depth in body units.
    """
    seen = points @ world_to_camera[:, :3].T + world_to_camera[:, 3]  # (N, 3)
    image = seen @ k.T  # (N, 3)
    return np.column_stack([image[:, :2] / image[:, 2:], seen[:, 2]])


def mesh_in_file_axes(verts, faces) -> tuple[np.ndarray, np.ndarray]:
    """A mesh (V, 3), (F, 3) of camera space in the axes of files, normals pointing outward."""
    verts, faces = file_axes(verts), array_of(faces)
    if verts.ndim != 2 or verts.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"verts {verts.shape} and faces {faces.shape}, expected (V, 3) and (F, 3)")
    if not np.isfinite(verts).all():
        raise ValueError("verts must be finite")
    a, b, c = (verts - verts.mean(0))[faces].transpose(1, 0, 2).astype(np.float64)  # (F, 3) each
    volume = (a * np.cross(b, c)).sum()
    return verts, faces[:, ::-1] if volume < 0 else faces


def write_meshes(folder: str | Path, stem: str, verts, faces, colors=None) -> dict[str, str]:
    """Writes `<stem>.obj`, `<stem>.glb` and `<stem>.ply`.

    Args:
        folder: made where it is missing.
        stem: file name without its ending.
        verts: (V, 3), camera space, body units.
        faces: (F, 3), either turn of the corners.
        colors: (V, 3) red green blue in [0, 1], or None.

    Returns:
        File names by ending.
    """
    import trimesh  # takes most of a second, which training need not wait for
    from trimesh.exchange.gltf import export_glb
    from trimesh.exchange.obj import export_obj
    from trimesh.exchange.ply import export_ply

    verts, faces = mesh_in_file_axes(verts, faces)
    colors = None if colors is None else np.clip(array_of(colors), 0, 1)
    screen, light = (trimesh.Trimesh(verts, faces, process=False) for _ in range(2))
    if colors is not None:  # glTF wants linear light, the two others what a screen is sent
        linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
        for mesh, values in ((screen, colors), (light, linear)):
            rounded = np.round(255 * values).astype(np.uint8)
            mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=rounded)
    axes = "x right, y up, z towards the viewer"
    exports = {
        "obj": export_obj(screen, include_normals=True, header=axes).encode(),
        "glb": export_glb(light, include_normals=True, tree_postprocessor=_matt),
        "ply": export_ply(screen, vertex_normal=True),
    }
    for ending, data in exports.items():
        with atomic_write(Path(folder) / f"{stem}.{ending}") as temporary:
            temporary.write_bytes(data)
    return {ending: f"{stem}.{ending}" for ending in exports}


def _matt(tree: dict) -> None:
    """Gives the only mesh of a glTF tree a matt material; glTF's default is metal, often black."""
    matt = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9},
        "doubleSided": True,
    }
    tree["materials"] = [matt]
    tree["meshes"][0]["primitives"][0]["material"] = 0


def write_estimate(
    folder: str | Path,
    stem: str,
    estimates: Mapping[str, Estimate],
    parameters: Mapping,
    faces,
    photograph: Photograph,
    image: np.ndarray | None = None,
    backend: str = "auto",
) -> None:
    """Writes `<stem>_<name>.obj`, `.glb`, `.ply`; `<stem>_estimate.json`, `.npz` hold the numbers.

    Args:
        folder: made where it is missing.
        stem: file name without its ending.
        estimates: by name (`coarse`, `refined`), batches of one.
        parameters: arrays by name (pose, betas, scale, ...), batches of one; None is left out.
        faces: (F, 3).
        photograph: the photograph and the crop's place in it.
        image: (H, W, 3) uint8, the upright photograph, colours the vertices; None: no colours.
        backend: as in `render.rasterize`.
    """
    given = {name: array_of(value)[0] for name, value in parameters.items() if value is not None}
    width, height = photograph.width, photograph.height
    arrays: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "image_size": [width, height],
        "crop_center": photograph.center,
        "crop_side": photograph.side,
        "world_to_camera": WORLD_TO_CAMERA,
        "keypoint_names": KEYPOINT_NAMES,
        **given,
    }
    meshes = {}
    for name, estimate in estimates.items():
        verts, turned = mesh_in_file_axes(estimate.verts[0], faces)
        k = camera_in_photograph(float(estimate.scale), photograph.center, photograph.side)
        colors = None
        if image is not None:
            plane = _plane(verts, k, width, height)
            colors = vertex_colors(image, estimate.verts[0], plane, faces, backend=backend)
        joints = file_axes(estimate.joints[0])  # (J + 6, 3)
        found = pixels(joints, k)[:, :2]  # (J + 6, 2)
        known = len(joints) == len(JOINT_NAMES)
        names = JOINT_NAMES if known else tuple(f"joint_{j}" for j in range(len(joints)))
        arrays |= {f"verts_{name}": verts, f"K_{name}": k, "faces": turned, "joint_names": names}
        arrays |= {f"joints_3d_{name}": joints, f"joints_2d_{name}": found}
        chosen = list(KEYPOINT_JOINTS)
        meshes[name] = {
            "files": write_meshes(folder, f"{stem}_{name}", estimate.verts[0], faces, colors),
            "num_vertices": len(verts),
            "num_faces": len(turned),
            "K": k.tolist(),
            "joints_3d": _named(names, joints),
            "joints_2d": _named(names, found),
            "keypoints_3d": _named(KEYPOINT_NAMES, joints[chosen]),
            "keypoints_2d": _named(KEYPOINT_NAMES, found[chosen]),
        }
    summary = {
        "schema": SCHEMA,
        "version": VERSION,
        "axes": "x right, y up, z towards the viewer",
        "unit": "SMAL body unit, not metres",
        "image": {"file": photograph.name, "width": width, "height": height},
        "crop": {"center": list(photograph.center), "side": photograph.side},
        "world_to_camera": WORLD_TO_CAMERA.tolist(),
        "parameters": {name: value.tolist() for name, value in given.items()},
        "meshes": meshes,
    }
    write_json(Path(folder) / f"{stem}_estimate.json", summary)
    with atomic_write(Path(folder) / f"{stem}_estimate.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


def _named(names, values: np.ndarray) -> dict:
    return {
        name: np.round(value, 5).tolist()
        for name, value in zip(names, values.astype(np.float64), strict=True)
    }


def _plane(points: np.ndarray, k: np.ndarray, width: int, height: int) -> torch.Tensor:
    """(V, 3) in the axes of files to the plane of the whole photograph, as `render` takes it."""
    column, row, depth = pixels(points, k).T
    return torch.tensor(
        np.stack([2 * column / width - 1, 1 - 2 * row / height, depth], 1), dtype=torch.float32
    )


@torch.no_grad()
def vertex_colors(
    image: np.ndarray, verts, plane, faces, neutral=CLAY, backend: str = "auto"
) -> np.ndarray:
    """Colours of the vertices that an image shows; neutral elsewhere, gradually at the outline.

    Args:
        image: (H, W, 3) uint8.
        verts: (V, 3), camera space.
        plane: (V, 3), x right and y up in [-1, 1] inside `image`, and depth.
        faces: (F, 3).
        neutral: red green blue in [0, 1].
        backend: as in `render.rasterize`.

    Returns:
        (V, 3) float32 in [0, 1].
    """
    plane = torch.as_tensor(plane).detach()
    verts = torch.as_tensor(verts, device=plane.device).detach()
    faces = torch.as_tensor(array_of(faces).copy(), device=plane.device)
    low, high = plane[:, :2].amin(0), plane[:, :2].amax(0)
    fitted = torch.cat(
        [2 * (plane[:, :2] - low) / (high - low) - 1, plane[:, 2:]], 1
    )  # the mesh fills the z-buffer
    nearest = rasterize(fitted[None], faces, VISIBILITY_SIZE, backend)
    seen = torch.zeros(len(verts), device=plane.device)
    seen[faces[nearest.face[nearest.face >= 0]].flatten()] = 1  # corners of a face that is seen
    place = (fitted[None, None, :, :2] * plane.new_tensor([1, -1]), "nearest", "border", False)
    front = grid_sample(nearest.depth[None], *place)[
        0, 0, 0
    ]  # (V,) of what is seen where the vertex is
    seen *= (plane[:, 2] - front < 0.03 * (verts.amax(0) - verts.amin(0)).max()) | (front < 0)
    seen *= (plane[:, :2].abs() <= 1).all(1)
    facing = vertex_normals(verts[None], faces)[0, :, 2].abs()
    weight = (seen * ((facing - 0.1) / 0.35).clamp(0, 1))[:, None].cpu().numpy()  # (V, 1)
    pixel = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(plane) / 255
    spot = (plane[:, :2] * plane.new_tensor([1, -1]))[None, None]  # (1, 1, V, 2)
    found = grid_sample(pixel[None], spot, padding_mode="border", align_corners=False)
    sampled = found[0, :, 0].T.cpu().numpy()  # (V, 3)
    # What is seen runs a little way, fading, over its neighbours.
    means = adjacency(faces.cpu(), len(verts)) + scipy.sparse.identity(len(verts))
    means = scipy.sparse.diags(1 / np.asarray(means.sum(1)).ravel()) @ means
    spread = means @ (means @ (means @ np.hstack([weight * sampled, weight])))  # (V, 4)
    run = spread[:, :3] / np.maximum(spread[:, 3:], 1e-6)
    colors = weight * sampled + (1 - weight) * run
    weight = np.maximum(weight, spread[:, 3:])
    return (weight * colors + (1 - weight) * np.asarray(neutral)).astype(np.float32)


@torch.no_grad()
def turntable(
    path: str | Path,
    verts,
    faces,
    colors=CLAY,
    num_frames: int = 48,
    size: int = 320,
    backend: str = "auto",
) -> None:
    """Writes an animated GIF of a mesh that turns about the vertical, once in four seconds.

    Args:
        path: the file, ending in .gif.
        verts: (V, 3), camera space.
        faces: (F, 3).
        colors: red green blue in [0, 1], (3,) or (V, 3).
        num_frames: images in a turn.
        size: width of the images, pixels; they are at most as high.
        backend: as in `render.rasterize`.
    """
    verts = torch.as_tensor(verts).detach()
    faces = torch.as_tensor(array_of(faces).copy(), device=verts.device)
    angle = torch.arange(num_frames, device=verts.device) * (2 * torch.pi / num_frames)  # (N,)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([cos, zero, -sin, zero, zero + 1, zero, sin, zero, cos], 1).view(-1, 3, 3)
    verts = verts - (verts.amin(0) + verts.amax(0)) / 2
    points = verts @ turn.to(verts)  # (N, V, 3)
    depth = points[..., 2:] + 5 * verts.norm(dim=1).max()
    plane = points[..., :2] / depth
    reach = plane.abs().amax((0, 1))  # (2,)
    height = math.ceil(size * float(min(reach[1] / reach[0], 1)) / 2) * 2
    plane = 0.95 * plane / reach.max() * plane.new_tensor([1, size / height])
    rgb, alpha = shade(
        torch.cat([plane, depth], -1),
        faces,
        vertex_normals(points, faces),
        (height, size),
        color=torch.as_tensor(colors),
        backend=backend,
    )
    pixel = 255 * (rgb * alpha[..., None] + 1 - alpha[..., None])
    frames = pixel.round().to(torch.uint8).cpu().numpy()  # (N, H, W, 3)
    palette = Image.fromarray(np.concatenate([*frames[:: max(1, num_frames // 8)]])).quantize(255)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    duration = 4000 // num_frames  # milliseconds
    with atomic_write(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
