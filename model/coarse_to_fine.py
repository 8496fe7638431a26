"""The whole system: coarse network, refiner, and the body that both share."""

import torch
from torch import nn

from smal_model import SMAL, MeshHierarchy

from .coarse import CoarseModel
from .outputs import CoarseToFineOutput
from .refiner import Refiner


class CoarseToFine(nn.Module):
    """(B, 3, img_res, img_res) pictures to coarse and refined meshes, CoarseToFineOutput.

    The weights are `meshnet` (CoarseModel) and `graphnet` (Refiner); body and hierarchy are constants that move along with the
    module but are not in its state dict. num_layers: levels of the hierarchy in use (None: all). The rest as in the two parts.
    """

    def __init__(
        self, smal: SMAL, hierarchy: MeshHierarchy, backbone="resnet50", backbone_weights=None, local_feat=True,
        num_channels=256, num_downsampling=1, betas_scale=False, shape_init="smal", num_layers=None, unity_mean=None,
        img_res=224,
    ):  # fmt: skip
        super().__init__()
        if hierarchy.sizes[0] != smal.num_verts:
            raise ValueError(
                f"the mesh hierarchy is of a mesh with {hierarchy.sizes[0]} vertices, the body has {smal.num_verts}; "
                "take the two from the same data folder"
            )
        self.smal, self.hierarchy = smal, hierarchy
        self.meshnet = CoarseModel(smal, backbone, backbone_weights, betas_scale, shape_init, unity_mean, img_res)
        self.graphnet = Refiner(hierarchy, self.meshnet.feature_channels, local_feat, num_channels, num_downsampling, num_layers)
        self.coarse_frozen = False

    def freeze_coarse(self):
        """Stops `meshnet` from learning, its batch-norm statistics included."""
        self.coarse_frozen = True
        self.meshnet.requires_grad_(False).eval()

    def use_bf16(self):
        """Runs both networks (not the body) in bfloat16 where gradients are taken; evaluation stays in float32."""
        self.meshnet.use_bf16()
        self.graphnet.bf16 = True

    def train(self, mode: bool = True):
        super().train(mode)
        if self.coarse_frozen:
            self.meshnet.eval()
        return self

    def forward(self, image: torch.Tensor) -> CoarseToFineOutput:
        coarse = self.meshnet(image)
        del_v = self.graphnet(coarse.verts, coarse.scale, coarse.features)  # (B, V, 3)
        refined = self.smal(coarse.betas, coarse.pose, coarse.trans, del_v, coarse.betas_logscale)
        return CoarseToFineOutput(**vars(coarse), del_v=del_v, verts_refined=refined.verts, joints_refined=refined.joints)
