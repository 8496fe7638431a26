"""What the networks return."""

from dataclasses import dataclass
from functools import cached_property

import torch

from smal_model.joints import keypoints_of
from util.camera import project, to_pixels

from .keypoint_maps import Keypoints


@dataclass
class ImageFeatures:
    """What the backbone saw.

    maps: the four feature maps, finest first, (B, C_i, H_i, W_i), of the backbone's type.
    pooled: (B, C) mean of the last map.
    """

    maps: tuple[torch.Tensor, ...]
    pooled: torch.Tensor


@dataclass
class Estimate:
    """One mesh for each image, in camera space, and the camera that sees it.

    verts: (B, V, 3), x right, y up, z away from the viewer, body units.
    joints: (B, J + 6, 3), likewise.
    scale: (B, 1), the predicted scale of the camera (util.camera).
    """

    verts: torch.Tensor
    joints: torch.Tensor
    scale: torch.Tensor

    @cached_property
    def plane(self) -> torch.Tensor:
        """(B, V, 3) vertices in the image plane, x right, y up, and depth: what `render` takes."""
        return project(self.verts, self.scale)

    @cached_property
    def keypoints_px(self) -> torch.Tensor:
        """(B, 20, 2) the labelled keypoints, row and column in pixels of the crop."""
        return to_pixels(project(keypoints_of(self.joints), self.scale))

    def __len__(self) -> int:
        return len(self.verts)

    def __getitem__(self, image: int) -> "Estimate":
        """The estimate of one image, as a batch of one."""
        one = slice(image, image + 1)
        return Estimate(self.verts[one], self.joints[one], self.scale[one])


@dataclass
class Answer:
    """A body without offsets and what shaped it: trans (B, 3), pose (B, 3 J), betas (B, 20)."""

    estimate: Estimate
    trans: torch.Tensor
    pose: torch.Tensor
    betas: torch.Tensor


@dataclass
class Prediction:
    """The networks' answer for a batch of images.

    coarse: the estimate of stage 1.
    refined: the estimate of the refiner, None where there is none.
    fitted: the answer fitted to labels at test time, None where it was not.
    trans: (B, 3). pose: (B, 3 J) axis-angle, radians.
    betas: (B, 20). betas_logscale: (B, 6) or None.
    del_v: (B, V, 3) the refiner's offsets in the rest pose, or None.
    features: what the refiner sees of the image.
    keypoints: the keypoints as heat maps, None where the network has none.
    outline: (B, H, W) logits of the animal's mask, likewise.
    before: the coarse answer before it was moved to these keypoints, where training or the refiner
        asks for it.
    second_maps: (B, 20, H, W) heat maps of the refiner's second look, None where it takes none.
    reposed: the body that the refiner's offsets are of, where it is not the coarse one.
    """

    coarse: Estimate
    trans: torch.Tensor
    pose: torch.Tensor
    betas: torch.Tensor
    betas_logscale: torch.Tensor | None
    features: ImageFeatures
    keypoints: Keypoints | None = None
    outline: torch.Tensor | None = None
    before: Answer | None = None
    second_maps: torch.Tensor | None = None
    reposed: Answer | None = None
    refined: Estimate | None = None
    del_v: torch.Tensor | None = None
    fitted: Estimate | None = None

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimates that there are by name, `coarse`, `refined`, `fitted`."""
        found = {"coarse": self.coarse, "refined": self.refined, "fitted": self.fitted}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    @property
    def own(self) -> Answer:
        """The coarse network's answer."""
        return Answer(self.coarse, self.trans, self.pose, self.betas)

    @property
    def body(self) -> Answer:
        """The body whose vertices the offsets move."""
        return self.reposed or self.own

    @property
    def finest(self) -> Estimate:
        """The last of them."""
        *_, finest = self.estimates.values()
        return finest
