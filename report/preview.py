"""What TensorBoard shows of a model that learns: strips and meshes of a few validation images."""

import torch
from torch.utils.data import default_collate

from util.images import to_image

from .meshes import mesh_in_file_axes, vertex_colors
from .overlays import batch_strips, image_grid

NUM_STRIPS = 4  # the first validation images
NUM_MESHES = 2  # of these; each takes about 50 bytes a vertex at every validation


class Preview:
    """Strips and finest meshes of a few validation images, made anew as the model learns.

    Args:
        model: CoarseModel or CoarseToFine.
        dataset: of the validation images.
        renderer: backend of `render`.
    """

    def __init__(self, model, dataset, renderer: str = "auto"):
        self.model, self.renderer = model, renderer
        device = model.device
        batch = default_collate([dataset[i] for i in range(min(NUM_STRIPS, len(dataset)))])
        self.batch = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
        }

    @torch.no_grad()
    def show(self, run, step: int) -> None:
        """Hands the strips, below each other, and the meshes to a run.

        Args:
            run: has `image` and `mesh` (engine.run_folder).
            step: of the run.
        """
        images, faces = self.batch["image"], self.model.smal.faces
        out = self.model.eval()(images)
        strips = batch_strips(self.batch, out, faces, backend=self.renderer)
        run.image("val", image_grid(strips), step)
        for i in range(min(NUM_MESHES, len(images))):
            one = out.finest[i]
            if not one.verts.isfinite().all():  # a training that diverges shows nothing
                continue
            shown = to_image(images[i]), one.verts[0], one.plane[0], faces
            colors = vertex_colors(*shown, backend=self.renderer)  # (V, 3)
            run.mesh(f"val/mesh_{i + 1}", *mesh_in_file_axes(one.verts[0], faces), colors, step)
