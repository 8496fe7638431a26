"""Stage 1: from an image to SMAL parameters and a camera (paper, section 3.2)."""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from smal_model import NUM_BETAS, NUM_LOGSCALES, SMAL, BodyJoints
from smal_model.joints import NUM_KEYPOINTS, keypoints_of
from util.camera import project
from util.errors import InputError

from .backbone import Backbone, build_backbone
from .keypoint_maps import (
    PER_KEYPOINT,
    WIDTH,
    KeypointMaps,
    Keypoints,
    keypoints_in,
    mean_of_maps,
    mirrored,
    regressor,
)
from .keypoint_solve import KeypointSolve
from .outline import OutlineMap
from .outputs import Answer, Estimate, ImageFeatures, Prediction

CODE = 100  # numbers in the code z
ROUNDS = 2  # corrections of the estimate by the heat maps, learned ones
STEPS = 4  # and steps to the most likely body
NORM_GROUPS = 128  # or the largest divisor of it that divides the channels
# 120 degrees about (-1, 1, 1): the animal faces the camera, upright.
GLOBAL_ROTATION = (-1.20919958, 1.20919958, 1.20919958)


class SmallMapConv2d(nn.Conv2d):
    """A convolution of few places and many channels: on the CPU, one matrix product."""

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        columns = F.unfold(
            x, self.kernel_size, self.dilation, self.padding, self.stride
        )  # (B, C k k, places)
        sizes = zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        places = [(n + 2 * p - k) // s + 1 for n, p, k, s in sizes]
        y = F.linear(columns.transpose(1, 2), self.weight.flatten(1), self.bias)  # (B, places, C)
        return y.transpose(1, 2).unflatten(2, places)


class _Encoder(nn.Module):
    """Image to the code z (B, 100), the flattened last features, and the backbone's maps."""

    def __init__(self, backbone: Backbone, img_res: int):
        super().__init__()
        self.resnet_conv = backbone  # the published name
        channels = backbone.channels[-1]
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, 3, img_res, img_res))
        backbone.train()
        side = maps[-1].shape[-1] // 2
        if side < 1:
            raise InputError(f"img_res {img_res} leaves no feature map: 33 is the least")
        self.num_features = channels * side * side
        groups = math.gcd(NORM_GROUPS, channels)
        if groups == self.num_features:  # one number a group: its norm would be 0, whatever it is
            groups //= 2
        self.enc_conv1 = nn.Sequential(
            SmallMapConv2d(channels, channels, 4, stride=2, padding=1),
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(0.2),
        )
        sizes = (self.num_features, CODE)
        self.enc_fc = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(n, CODE), nn.BatchNorm1d(CODE), nn.LeakyReLU(0.2))
                for n in sizes
            )
        )
        blocks = (self.enc_conv1, *self.enc_fc)
        layers: list = [block[0] for block in blocks]
        for layer in layers:
            nn.init.normal_(layer.weight, 0, 0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, image, bf16: bool):
        if bf16 or (self.resnet_conv.channels_last and image.device.type == "cpu"):
            image = image.contiguous(memory_format=torch.channels_last)  # the layers hand it on
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            maps = self.resnet_conv(image)
            flat = self.enc_conv1(maps[-1]).flatten(1)  # (B, 18432) for ResNet-50 at 224
        flat = flat.float()
        return self.enc_fc(flat), flat, maps


class _Head(nn.Module):
    """One linear layer under the published name `pred_layer`."""

    def __init__(self, inputs: int, outputs: int, bias_mean=None):
        super().__init__()
        self.pred_layer = nn.Linear(inputs, outputs)
        if bias_mean is not None:
            _init_near(self.pred_layer, bias_mean)

    def forward(self, x):
        return self.pred_layer(x)


def _init_near(layer: nn.Linear, bias_mean):
    """Weights N(0, 1e-4), biases their mean + N(0, 1e-4)."""
    nn.init.normal_(layer.weight, 0, 1e-4)
    with torch.no_grad():
        layer.bias.normal_(0, 1e-4).add_(
            torch.as_tensor(np.asarray(bias_mean), dtype=layer.bias.dtype)
        )


class _TransHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.pred_layer_xy, self.pred_layer_z = nn.Linear(CODE, 2), nn.Linear(CODE, 1)
        _init_near(self.pred_layer_xy, 0.0)
        _init_near(self.pred_layer_z, 0.0)

    def forward(self, z):
        return torch.cat([self.pred_layer_xy(z), 1 + self.pred_layer_z(z)], 1)  # (B, 3)


class CoarseModel(nn.Module):
    """The coarse network `meshnet` (paper, section 3.2).

    Args:
        smal: the body (constants, nothing of it is in the state dict).
        backbone: gives four maps and tells their `channels`; or the name of one (model.backbone).
        betas_scale: predict log-scales of the limbs too.
        shape_init: `smal` starts the betas at the family's mean, `unity` at `unity_mean`.
        unity_mean: (26,) betas, then log-scales.
        img_res: side of the input image, pixels, 33 or more.
        keypoint_maps: find the keypoints as heat maps too, and correct the estimate by them.
        outline: find the animal's outline too; needs keypoint_maps.
    """

    def __init__(
        self,
        smal: SMAL,
        backbone: str | Backbone = "resnet50",
        betas_scale: bool = False,
        shape_init: str = "smal",
        unity_mean=None,
        img_res: int = 224,
        keypoint_maps: bool = False,
        outline: bool = False,
    ):
        super().__init__()
        if shape_init not in ("smal", "unity"):
            raise ValueError(f"unknown shape_init {shape_init!r}; expected smal or unity")
        if shape_init == "unity" and unity_mean is None:
            raise ValueError("shape_init 'unity' needs unity_mean (smal_model.priors.unity_betas)")
        self.smal, self.img_res = smal, img_res
        self.bf16 = self.batch_norm_frozen = False
        if isinstance(backbone, str):
            backbone = build_backbone(backbone)
        self.encoder = _Encoder(backbone, img_res)
        unity = shape_init == "unity"
        betas_mean = unity_mean[:NUM_BETAS] if unity else smal.family_mean[:NUM_BETAS]
        heads = OrderedDict(
            scale_predictor=_Head(CODE, 1),
            trans_predictor=_TransHead(),
            pose_predictor=_Head(CODE, 3 * smal.num_joints, bias_mean=0.0),
            betas_predictor=_Head(self.encoder.num_features, NUM_BETAS, betas_mean),
        )
        if betas_scale:
            mean = unity_mean[NUM_BETAS:] if unity else np.zeros(NUM_LOGSCALES)
            heads["betas_scale_predictor"] = _Head(self.encoder.num_features, NUM_LOGSCALES, mean)
        self.code_predictor = nn.ModuleDict(heads)
        offset = torch.zeros(3 * smal.num_joints)
        offset[:3] = torch.tensor(GLOBAL_ROTATION)
        self.register_buffer("pose_offset", offset, persistent=False)
        self.has_maps, self.has_outline = keypoint_maps, outline
        if outline and not keypoint_maps:
            raise InputError(
                "outline needs keypoint_maps (--keypoint_maps): it is made of their features"
            )
        if keypoint_maps:
            self.keypoint_maps = KeypointMaps(backbone.channels)
            seen = PER_KEYPOINT * NUM_KEYPOINTS
            self.sizes = [1, 3, 3 * smal.num_joints, NUM_BETAS] + [NUM_LOGSCALES] * betas_scale
            self.lift = regressor(seen, CODE)  # what the keypoints add to the code
            inputs = seen + 2 * NUM_KEYPOINTS + CODE + sum(self.sizes)
            self.correct = regressor(inputs, sum(self.sizes))
            self.solve = KeypointSolve(smal)
            self.body_joints = BodyJoints(smal)
        if outline:
            self.outline_map = OutlineMap(backbone.channels[0], WIDTH)

    @property
    def device(self) -> torch.device:
        """Where the body and the weights are."""
        return self.smal.template.device

    def use_bf16(self) -> None:
        """Convolutions in bfloat16 where gradients are taken; evaluation stays in float32."""
        self.bf16 = True

    def freeze_batch_norm(self) -> None:
        """Normalises with the running statistics in training too, and leaves them as they are."""
        self.batch_norm_frozen = True
        self.train(self.training)

    def freeze_backbone(self, maps: int) -> None:
        """Stops what makes the backbone's first `maps` feature maps from learning."""
        self.encoder.resnet_conv.freeze(maps)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.batch_norm_frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def feature_channels(self) -> list[int]:
        return self.encoder.resnet_conv.channels

    def forward(self, image: torch.Tensor) -> Prediction:
        """Coarse estimates of images (B, 3, img_res, img_res), ImageNet-normalised."""
        expected = (3, self.img_res, self.img_res)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            wanted = f"expected (B, {', '.join(map(str, expected))})"
            raise ValueError(f"image batch of shape {tuple(image.shape)}, {wanted}")
        z, flat, maps = self.encoder(image, self.bf16 and torch.is_grad_enabled())
        keypoints = before = outline = None
        if self.has_maps:
            keypoints = self.keypoint_maps([m.float() for m in maps])
            if self.has_outline:
                outline = self.outline_map(maps[0].float(), keypoints.pyramid)
            z = z + self.lift(keypoints.flat)
        heads = self.code_predictor
        scale = heads["scale_predictor"](z)  # (B, 1)
        trans = heads["trans_predictor"](z)  # (B, 3)
        pose = heads["pose_predictor"](z) + self.pose_offset  # (B, 3J)
        betas = heads["betas_predictor"](flat)  # (B, 20)
        has_logscale = "betas_scale_predictor" in heads
        logscale = heads["betas_scale_predictor"](flat) if has_logscale else None  # (B, 6)
        if keypoints is not None:
            values = scale, trans, pose, betas, logscale
            for _ in range(ROUNDS):
                values = self._corrected(values, keypoints, z)
            scale, trans, pose, betas, logscale = values
            if self.training or self.has_outline:
                body = self.smal(betas, pose, trans, betas_logscale=logscale)
                before = Answer(Estimate(body.verts, body.joints, scale), trans, pose, betas)
            for _ in range(STEPS):
                joints = self.body_joints(betas, pose, trans, logscale)
                scale, trans, pose, betas = self.solve(scale, trans, pose, betas, joints, keypoints)
        body = self.smal(betas, pose, trans, betas_logscale=logscale)
        pooled = F.adaptive_avg_pool2d(maps[-1].float(), 1).flatten(1)  # (B, C)
        estimate = Estimate(body.verts, body.joints, scale)
        features = ImageFeatures(tuple(maps), pooled)
        return Prediction(
            estimate, trans, pose, betas, logscale, features, keypoints, outline, before
        )

    def see_mirrored(self, out: Prediction, image: torch.Tensor) -> None:
        """Averages keypoints and outline of `out` with those that the mirrored image shows.

        A flip test (Newell et al., ECCV 2016); the estimate stays. `image`: as in `forward`.
        """
        _, _, maps = self.encoder(image.flip(-1), False)
        other = self.keypoint_maps([m.float() for m in maps])
        assert out.keypoints is not None and out.outline is not None
        outline = self.outline_map(maps[0].float(), other.pyramid)
        out.outline = (out.outline + outline.flip(-1)) / 2
        mean = mean_of_maps(out.keypoints.maps, mirrored(other.maps))
        out.keypoints = keypoints_in(mean, out.keypoints.pyramid)

    def _corrected(self, values, keypoints: Keypoints, z):
        """The parameters moved by what their projection lacks from the heat maps.

        Iterative error feedback (Carreira et al., CVPR 2016) in the image plane.
        """
        scale, trans, pose, betas, logscale = values
        joints = self.body_joints(betas, pose, trans, logscale)
        projected = project(keypoints_of(joints), scale)[..., :2]  # (B, 20, 2)
        missing = 10 * keypoints.confidence[..., None] * (keypoints.xy - projected)
        known = [value for value in values if value is not None]
        inputs = [keypoints.flat, missing.detach().flatten(1), z, *known]
        steps = self.correct(torch.cat(inputs, 1)).split(self.sizes, 1)
        moved = [value + step for value, step in zip(known, steps, strict=True)]
        scale, trans, pose, betas, *rest = moved
        return scale, trans, pose, betas, rest[0] if rest else None
