"""What shapes the networks, as one value that checkpoints store."""

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class RefinerConfig:
    """The graph network.

    local_feat: sample the image's feature maps at the vertices.
    num_channels: width, a multiple of 16.
    num_layers: levels of the mesh hierarchy in use, from the finest.
    num_downsampling: levels above the one on which the network works.
    second_look: look at the image again where the body posed anew has its keypoints; needs outline.
    flip_test: outside training, pose the body anew by the keypoints and the outline of the mirrored
        image too, where there is an outline; it shapes no weight.
    """

    local_feat: bool = False
    num_channels: int = 256
    num_layers: int = 5
    num_downsampling: int = 1
    second_look: bool = False
    flip_test: bool = True


@dataclass(frozen=True)
class NetworkConfig:
    """Both networks; the refiner is None for stage 1.

    backbone: resnet18, resnet50, efficientnet_lite0, or timm:NAME.
    img_res: side of the input image, pixels.
    betas_scale: predict limb log-scales too.
    shape_init: start of the betas, smal or unity.
    shape_family_id: SMAL's shape family; 1 is dogs.
    keypoint_maps: find keypoints as heat maps too, and correct the coarse estimate by them.
    outline: find the animal's outline too, and tell it to the refiner; needs keypoint_maps.
    """

    backbone: str = "resnet50"
    img_res: int = 224
    betas_scale: bool = False
    shape_init: str = "smal"
    shape_family_id: int = 1
    keypoint_maps: bool = False
    outline: bool = False
    refiner: RefinerConfig | None = None

    def to_dict(self) -> dict:
        """A flat dict of plain values, as checkpoints store it."""
        values = asdict(self)
        return values | (values.pop("refiner") or {})

    @classmethod
    def from_dict(cls, values: dict, refined: bool) -> "NetworkConfig":
        """Of a flat dict; what it lacks takes its default. `refined`: with a refiner."""
        own, refiner = network_options(False), network_options(True)
        values = {name: values[name] for name in refiner if name in values}
        part = (
            RefinerConfig(**{k: v for k, v in values.items() if k not in own}) if refined else None
        )
        return cls(**{k: v for k, v in values.items() if k in own}, refiner=part)


def network_options(refined: bool) -> list[str]:
    """Names of the options that shape the coarse network, or both networks where `refined`."""
    names = [f.name for f in fields(NetworkConfig) if f.name != "refiner"]
    return names + ([f.name for f in fields(RefinerConfig)] if refined else [])
