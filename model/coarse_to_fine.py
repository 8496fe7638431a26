"""The whole system: coarse network, refiner, and the body that both share."""

import torch
from torch import nn

from smal_model import SMAL, MeshHierarchy
from util.errors import InputError

from .backbone import Backbone
from .body_solve import BodySolve
from .coarse import CoarseModel
from .outline import VertexOutline
from .outputs import Estimate, Prediction
from .refiner import Refiner
from .second_look import SecondLook


class CoarseToFine(nn.Module):
    """Images to coarse and refined meshes (Li and Lee, NeurIPS 2021).

    The weights are `meshnet` (CoarseModel) and `graphnet` (Refiner); body and hierarchy are
    constants that move along with the module but are not in its state dict.

    Args:
        smal: the body.
        hierarchy: of the body's mesh.
        backbone: a name of model.backbone, or the module.
        backbone_weights: a state dict for the backbone, or None.
        local_feat, num_channels, num_downsampling, num_layers, second_look, flip_test: see
            RefinerConfig; num_layers None: all levels.
        betas_scale, shape_init, unity_mean, img_res, keypoint_maps, outline: see CoarseModel.

    Raises:
        ValueError: body and hierarchy do not fit each other, or an argument is out of range.
    """

    def __init__(
        self,
        smal: SMAL,
        hierarchy: MeshHierarchy,
        backbone: str | Backbone = "resnet50",
        backbone_weights: dict | None = None,
        local_feat: bool = True,
        num_channels: int = 256,
        num_downsampling: int = 1,
        betas_scale: bool = False,
        shape_init: str = "smal",
        num_layers: int | None = None,
        unity_mean=None,
        img_res: int = 224,
        keypoint_maps: bool = False,
        outline: bool = False,
        second_look: bool = False,
        flip_test: bool = True,
    ):
        super().__init__()
        if second_look and not outline:
            raise InputError("second_look needs outline (--outline): it corrects what poses anew")
        if hierarchy.sizes[0] != smal.num_verts:
            raise InputError(
                f"the mesh hierarchy is of a mesh with {hierarchy.sizes[0]} vertices, the body has "
                f"{smal.num_verts}: take the two from the same data folder"
            )
        self.smal, self.hierarchy = smal, hierarchy
        self.meshnet = CoarseModel(
            smal, backbone, betas_scale, shape_init, unity_mean, img_res, keypoint_maps, outline
        )
        if backbone_weights is not None:
            self.meshnet.encoder.resnet_conv.load(backbone_weights)
        channels = self.meshnet.feature_channels
        self.graphnet = Refiner(
            hierarchy, channels, local_feat, num_channels, num_downsampling, num_layers, outline
        )
        self.body_solve = self.vertex_outline = self.second_look = None
        if outline:
            features = channels[-1] if second_look else None
            self.body_solve = BodySolve(smal, hierarchy, num_downsampling, features)
            self.vertex_outline = VertexOutline(smal, hierarchy, num_downsampling)
        if second_look:
            self.second_look = SecondLook()
        self.flip_test, self.coarse_frozen = flip_test and outline, False

    @property
    def device(self) -> torch.device:
        """Where the body and the weights are."""
        return self.smal.template.device

    def freeze_coarse(self) -> None:
        """Stops `meshnet` from learning, its batch-norm statistics included."""
        self.coarse_frozen = True
        self.meshnet.requires_grad_(False).eval()

    def freeze_backbone(self, maps: int) -> None:
        """See CoarseModel."""
        self.meshnet.freeze_backbone(maps)

    def freeze_batch_norm(self) -> None:
        """See CoarseModel; the refiner has none."""
        self.meshnet.freeze_batch_norm()

    def use_bf16(self) -> None:
        """Both networks in bfloat16 where gradients are taken; evaluation stays in float32."""
        self.meshnet.use_bf16()
        self.graphnet.bf16 = True

    def train(self, mode: bool = True):
        super().train(mode)
        if self.coarse_frozen:
            self.meshnet.eval()
        return self

    def forward(self, image: torch.Tensor) -> Prediction:
        """Coarse and refined estimates of images (B, 3, img_res, img_res), ImageNet-normalised."""
        out = self.meshnet(image)
        if self.flip_test and not self.training:
            self.meshnet.see_mirrored(out, image)
        told = None
        if self.body_solve is not None and self.vertex_outline is not None:
            look = self._look(out) if self.second_look is not None else None
            out.reposed = self.body_solve(out, self.meshnet.solve, look)
            verts, pose = out.reposed.estimate.verts, out.reposed.pose
            told = self.vertex_outline(
                out.outline, verts, out.coarse.scale, pose, out.betas_logscale
            )
        start = out.body
        out.del_v = self.graphnet(start.estimate.verts, out.coarse.scale, out.features, told)
        if self.vertex_outline is not None:
            out.del_v = self.vertex_outline.held(out.del_v, start.pose)
        body = self.smal(start.betas, start.pose, start.trans, out.del_v, out.betas_logscale)
        out.refined = Estimate(body.verts, body.joints, out.coarse.scale)
        return out

    def _look(self, out: Prediction):
        """A function that gives corrected heat maps, by a body's keypoints, and notes them."""

        def look(places: torch.Tensor) -> torch.Tensor:
            assert self.second_look is not None
            out.second_maps = self.second_look(out.keypoints, out.outline, places)
            return out.second_maps

        return look
