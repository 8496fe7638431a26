"""What demo.py leaves: overlays, strips, meshes, turntables, videos, the page."""

from pathlib import Path

import cv2
import numpy as np
import torch

from model.outputs import Estimate, Prediction
from util.errors import InputError
from util.files import atomic_write
from util.images import to_image, write_png

from .meshes import Photograph, turntable, vertex_colors, write_estimate, write_meshes
from .overlays import array_of, photograph_overlay, strip
from .page import PageImage, write_page

FRAME_RATE = 25.0  # of videos that do not tell theirs


class Gallery:
    """Writes results one animal at a time, and a page of all.

    Args:
        folder: of the results.
        faces: (F, 3).
        renderer: backend of `render`.
        turning: write a GIF of each mesh, turning.
    """

    def __init__(
        self, folder: Path, faces: torch.Tensor, renderer: str = "auto", turning: bool = False
    ):
        self.folder, self.faces, self.renderer = folder, faces, renderer
        self.turning = turning
        self.images: list[PageImage] = []

    def add(self, task, out: Prediction, i: int) -> None:
        """Writes what image `i` of a prediction gives.

        Args:
            task: name, path, image, crop and sample of the animal.
            out: the prediction.
            i: position in it.

        Raises:
            InputError: a mesh is not finite; nothing was written.
        """
        name, estimates = task.name, {k: e[i] for k, e in out.estimates.items()}
        _check_finite(task.path, *estimates.values())
        finest = estimates.get("refined") or estimates["coarse"]
        over = photograph_overlay(task.image, finest, self.faces, task.crop, backend=self.renderer)
        write_png(self.folder / f"{name}_overlay.png", over)
        row = strip(task.sample, estimates, self.faces, backend=self.renderer)
        write_png(self.folder / f"{name}_strip.png", row)
        height, width = task.image.shape[:2]
        photograph = Photograph(task.path.name, width, height, *task.crop)
        body = out.body
        parameters: dict = {"pose": body.pose, "betas": body.betas, "trans": body.trans}
        parameters |= {"betas_logscale": out.betas_logscale, "del_v": out.del_v}
        given = {k: v[i : i + 1] for k, v in parameters.items() if v is not None}
        given["scale"] = finest.scale
        about = photograph, task.image, self.renderer
        write_estimate(self.folder, name, estimates, given, self.faces, *about)
        image = PageImage(name, strip=f"{name}_strip.png")
        image.files = {"overlay": f"{name}_overlay.png", "parameters": f"{name}_estimate.json"}
        image.files |= {f"{k}.glb": f"{name}_{k}.glb" for k in estimates}
        crop = to_image(task.sample["image"])
        image.meshes = {k: array_of(e.verts[0]) for k, e in estimates.items()}
        shown = {
            k: vertex_colors(crop, e.verts[0], e.plane[0], self.faces, backend=self.renderer)
            for k, e in estimates.items()
        }
        image.colors = shown
        if self.turning:
            colors = shown["refined" if "refined" in shown else "coarse"]
            path = self.folder / f"{name}_turntable.gif"
            turntable(path, finest.verts[0], self.faces, colors, backend=self.renderer)
        self.images.append(image)

    def add_video(self, name: str, frames, out: Prediction, crops: list, rate: float) -> None:
        """Writes `<name>.mp4`, the overlays, `<name>_sequence.npz` and a mesh of each frame.

        Args:
            name: of the video.
            frames: its images, (H, W, 3) uint8 each, in order.
            out: the smoothed prediction, one row a frame.
            crops: center and side of each frame's crop.
            rate: frames a second.

        Raises:
            InputError: a mesh is not finite; nothing was written.
        """
        _check_finite(name, out.finest)
        finest = out.finest
        values: dict = {"verts": finest.verts, "joints": finest.joints, "scale": finest.scale}
        values |= {"pose": out.pose, "betas": out.betas, "trans": out.trans, "faces": self.faces}
        values |= {"betas_logscale": out.betas_logscale, "del_v": out.del_v}
        arrays: dict = {k: array_of(v) for k, v in values.items() if v is not None}
        arrays["crop_center"] = np.array([center for center, _ in crops])
        arrays["crop_side"] = np.array([side for _, side in crops])
        with atomic_write(self.folder / f"{name}_sequence.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
        meshes = self.folder / f"{name}_sequence"
        for old in meshes.glob("*") if meshes.is_dir() else ():  # of a longer video of this name
            if old.stem.isdecimal() and int(old.stem) >= len(crops):
                old.unlink()
        for t, verts in enumerate(array_of(finest.verts)):
            write_meshes(meshes, f"{t:06d}", verts, self.faces)
        rate = min(max(rate, 0.001), 65535) if rate else FRAME_RATE
        # MPEG-4 has at most 65,535 ticks a second
        rate = round(rate, 3 if rate < 65 else 2 if rate < 600 else None)
        with atomic_write(self.folder / f"{name}.mp4") as temporary:
            writer = None
            for t, image in enumerate(frames):
                about = finest[t], self.faces, crops[t]
                over = photograph_overlay(image, *about, backend=self.renderer)
                if writer is None:
                    size, code = over.shape[1::-1], cv2.VideoWriter.fourcc(*"mp4v")
                    writer = cv2.VideoWriter(str(temporary), code, rate, size)
                    if not writer.isOpened():
                        found = f"{name}.mp4 of {size[0]} x {size[1]} pixels"
                        raise InputError(f"{found}, {rate:g} frames a second, cannot be written")
                writer.write(cv2.cvtColor(over, cv2.COLOR_RGB2BGR))
            if writer is not None:
                writer.release()
        files = {"video": f"{name}.mp4", "sequence": f"{name}_sequence.npz"}
        mesh = {"refined" if out.refined else "coarse": array_of(finest.verts[0])}
        self.images.append(PageImage(name, meshes=mesh, files=files))

    def write_page(self, title: str, facts: dict) -> None:
        """Writes `index.html` with all that was added."""
        write_page(self.folder, title, self.images, array_of(self.faces), facts)


def _check_finite(source, *estimates: Estimate) -> None:
    if not all(estimate.verts.isfinite().all() for estimate in estimates):
        raise InputError(f"the network's mesh of {source} is not finite: take another checkpoint")
