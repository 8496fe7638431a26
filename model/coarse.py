"""Stage 1: from a picture to SMAL parameters and a camera (paper, section 3.2)."""

from collections import OrderedDict

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from smal_model import NUM_BETAS, NUM_LOGSCALES, SMAL

from .outputs import CoarseOutput, ImageFeatures

BACKBONES = {"resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50}
CODE = 100  # numbers in the code z
NORM_GROUPS = 128
# 120 degrees about (-1, 1, 1): the animal faces the camera, upright.
GLOBAL_ROTATION = (-1.20919958, 1.20919958, 1.20919958)


def map_sizes(img_res: int) -> list[int]:
    """Sides of the backbone's four feature maps; each halving rounds up."""
    sides, side = [], -(-img_res // 2)
    for _ in range(4):
        side = -(-side // 2)
        sides.append(side)
    return sides


class _Backbone(nn.Module):
    """torchvision's ResNet without its head (which stays, unused, as in the published files)."""

    def __init__(self, name: str):
        super().__init__()
        self.resnet = BACKBONES[name](weights=None)
        stages = (self.resnet.layer1, self.resnet.layer2, self.resnet.layer3, self.resnet.layer4)
        self.channels = [getattr(s[-1], "bn3", s[-1].bn2).num_features for s in stages]

    def forward(self, x) -> list[torch.Tensor]:
        r = self.resnet
        x = r.maxpool(r.relu(r.bn1(r.conv1(x))))
        maps = []
        for stage in (r.layer1, r.layer2, r.layer3, r.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class SmallMapConv2d(nn.Conv2d):
    """A convolution of few places and many channels. On the CPU as one matrix product, which takes a third of the time."""

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        columns = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # (B, C k k, places)
        sizes = zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        places = [(n + 2 * p - k) // s + 1 for n, p, k, s in sizes]
        y = F.linear(columns.transpose(1, 2), self.weight.flatten(1), self.bias)  # (B, places, C)
        return y.transpose(1, 2).unflatten(2, places)


class _Encoder(nn.Module):
    def __init__(self, backbone: str, img_res: int):
        super().__init__()
        self.resnet_conv = _Backbone(backbone)
        channels = self.resnet_conv.channels[-1]
        side = map_sizes(img_res)[-1] // 2
        if side < 1:
            raise ValueError(f"--img_res {img_res} leaves no feature map; 33 is the least.")
        self.num_features = channels * side * side
        self.enc_conv1 = nn.Sequential(
            SmallMapConv2d(channels, channels, 4, stride=2, padding=1),
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.LeakyReLU(0.2),
        )
        self.enc_fc = nn.Sequential(
            *(nn.Sequential(nn.Linear(n, CODE), nn.BatchNorm1d(CODE), nn.LeakyReLU(0.2)) for n in (self.num_features, CODE))
        )
        for layer in (self.enc_conv1[0], self.enc_fc[0][0], self.enc_fc[1][0]):
            nn.init.normal_(layer.weight, 0, 0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, image, bf16: bool):
        """image (B, 3, S, S) -> code z (B, 100), flattened features (B, num_features), maps."""
        if bf16:
            image = image.contiguous(memory_format=torch.channels_last)  # the layers hand the layout on
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            maps = self.resnet_conv(image)
            flat = self.enc_conv1(maps[-1]).flatten(1)  # (B, 18432) for ResNet-50 at 224
        flat = flat.float()
        return self.enc_fc(flat), flat, [m.float() for m in maps]


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
        layer.bias.normal_(0, 1e-4).add_(torch.as_tensor(np.asarray(bias_mean), dtype=layer.bias.dtype))


class _TransHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.pred_layer_xy, self.pred_layer_z = nn.Linear(CODE, 2), nn.Linear(CODE, 1)
        _init_near(self.pred_layer_xy, 0.0)
        _init_near(self.pred_layer_z, 0.0)

    def forward(self, z):
        return torch.cat([self.pred_layer_xy(z), 1 + self.pred_layer_z(z)], 1)  # (B, 3)


class CoarseModel(nn.Module):
    """The coarse network `meshnet`: (B, 3, img_res, img_res) ImageNet-normalised pictures to CoarseOutput.

    smal: the body (constants, nothing of it is in the state dict). backbone: a name of BACKBONES.
    backbone_weights: a ResNet state dict to start from, or None for random ones. shape_init: `smal` starts the betas at the
    family's mean, `unity` at `unity_mean` (26 numbers: betas, then log-scales). betas_scale adds the log-scale head.
    """

    def __init__(
        self, smal: SMAL, backbone="resnet50", backbone_weights=None, betas_scale=False, shape_init="smal",
        unity_mean=None, img_res=224,
    ):  # fmt: skip
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}; expected one of {', '.join(BACKBONES)}")
        if shape_init not in ("smal", "unity"):
            raise ValueError(f"unknown shape_init {shape_init!r}; expected smal or unity")
        if shape_init == "unity" and unity_mean is None:
            raise ValueError("shape_init 'unity' needs unity_mean (smal_model.priors.unity_betas)")
        self.smal = smal
        self.img_res = img_res
        self.bf16 = self.batch_norm_frozen = False
        self.encoder = _Encoder(backbone, img_res)
        if backbone_weights is not None:
            self.encoder.resnet_conv.resnet.load_state_dict(backbone_weights)
        betas_mean = smal.family_mean[:NUM_BETAS] if shape_init == "smal" else unity_mean[:NUM_BETAS]
        heads = OrderedDict(
            scale_predictor=_Head(CODE, 1),
            trans_predictor=_TransHead(),
            pose_predictor=_Head(CODE, 3 * smal.num_joints, bias_mean=0.0),
            betas_predictor=_Head(self.encoder.num_features, NUM_BETAS, betas_mean),
        )
        if betas_scale:
            logscale_mean = unity_mean[NUM_BETAS:] if shape_init == "unity" else np.zeros(NUM_LOGSCALES)
            heads["betas_scale_predictor"] = _Head(self.encoder.num_features, NUM_LOGSCALES, logscale_mean)
        self.code_predictor = nn.ModuleDict(heads)
        offset = torch.zeros(3 * smal.num_joints)
        offset[:3] = torch.tensor(GLOBAL_ROTATION)
        self.register_buffer("pose_offset", offset, persistent=False)

    def use_bf16(self):
        """Runs the convolutions in bfloat16, channels last, where gradients are taken; evaluation stays in float32."""
        self.bf16 = True

    def freeze_batch_norm(self):
        """Normalises with the running statistics in training too, and leaves them as they are."""
        self.batch_norm_frozen = True
        self.train(self.training)

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

    def forward(self, image: torch.Tensor) -> CoarseOutput:
        expected = (3, self.img_res, self.img_res)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise ValueError(f"picture batch of shape {tuple(image.shape)}, expected (B, {', '.join(map(str, expected))})")
        z, flat, maps = self.encoder(image, self.bf16 and torch.is_grad_enabled())
        heads = self.code_predictor
        scale = heads["scale_predictor"](z)  # (B, 1)
        trans = heads["trans_predictor"](z)  # (B, 3)
        pose = heads["pose_predictor"](z) + self.pose_offset  # (B, 3J)
        betas = heads["betas_predictor"](flat)  # (B, 20)
        logscale = heads["betas_scale_predictor"](flat) if "betas_scale_predictor" in heads else None  # (B, 6)
        body = self.smal(betas, pose, trans, betas_logscale=logscale)
        pooled = F.adaptive_avg_pool2d(maps[-1], 1).flatten(1)  # (B, C)
        return CoarseOutput(body.verts, body.joints, scale, trans, pose, betas, logscale, ImageFeatures(tuple(maps), pooled))
