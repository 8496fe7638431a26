"""Backbones: packaged weights that classify dogs, and what timm gives."""

import json
import sys

import numpy as np
import pytest
import torch

import eval as eval_script
import main
from datasets import build_dataset
from model import CoarseModel, build_backbone
from model.backbone import LITE0, lite0_weights
from smal_model import SMAL
from tests.commands import SMALL
from util.errors import InputError
from util.images import normalize, to_image

# ImageNet classes of the breeds in the sample photographs.
CLASSES = {
    "Rhodesian_ridgeback": 159,
    "Weimaraner": 178,
    "Border_terrier": 182,
    "golden_retriever": 207,
}
DOGS = range(151, 269)


@pytest.fixture(scope="module")
def photographs(shared):
    """The crops (N, 3, 224, 224) of the sample photographs in [0, 1], and their breeds' classes."""
    crops, classes = [], []
    for split in ("train", "val", "test"):
        dataset = build_dataset("stanford", shared / "samples", split)
        for sample in (dataset[i] for i in range(len(dataset))):
            crops.append(to_image(sample["image"]).transpose(2, 0, 1) / np.float32(255))
            classes.append(next(c for breed, c in CLASSES.items() if breed in sample["name"]))
    return torch.from_numpy(np.stack(crops)), classes


def test_packaged_weights_know_dogs(photographs):
    """Wrong settings of batch norm or normalisation degrade silently: the probabilities tell."""
    timm = pytest.importorskip("timm")
    net = timm.create_model(LITE0)
    weights = lite0_weights()
    assert len(weights) == 296
    net.load_state_dict(weights)
    crops, classes = photographs
    with torch.no_grad():
        probabilities = net.eval()((crops - 0.5) / 0.5).softmax(1)
    assert all(int(c) in DOGS for c in probabilities.argmax(1))
    true = [probabilities[i, c].item() for i, c in enumerate(classes)]
    # 0.644; with ImageNet's mean and deviation 0.591, with batch norm's default eps 0.629
    assert np.mean(true) > 0.64


def test_backbone_takes_our_normalisation(photographs):
    """Its maps of an ImageNet-normalised image are the net's own of (x - 0.5) / 0.5."""
    pytest.importorskip("timm")
    backbone = build_backbone("efficientnet_lite0", pretrained=True).eval()
    crop = photographs[0][:1]
    with torch.no_grad():
        found = backbone(normalize(crop[0].numpy().transpose(1, 2, 0))[None])
        own = backbone.net((crop - 0.5) / 0.5)[1:]
    assert [m.shape[1] for m in found] == backbone.channels == [24, 40, 112, 320]
    for a, b in zip(found, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_group_norm_takes_a_divisor_of_the_channels(synthetic_body):
    pytest.importorskip("timm")
    model = CoarseModel(SMAL(synthetic_body / "smal"), "efficientnet_lite0", img_res=64)
    norm = model.encoder.enc_conv1[1]
    assert norm.num_channels == 320 and 320 % norm.num_groups == 0 and norm.num_groups > 1


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:mobilenetv3_small_050"])
def test_light_backbones_train_resume_and_evaluate(data, tmp_path, name):
    pytest.importorskip("timm")
    weights = "imagenet" if name == "efficientnet_lite0" else "none"
    options = ["--backbone", name, "--img_res", "64", "--backbone_weights", weights]
    common = [
        "--data_dir",
        str(data),
        *SMALL[6:],
        "--batch_size",
        "9",
        "--output_dir",
        str(tmp_path),
    ]
    checkpoint = ["--resume", str(tmp_path / "checkpoint.pth.tar")]
    main.main([*common, *options, "--nEpochs", "1"])
    main.main([*common, *checkpoint, "--nEpochs", "2"])
    assert "epoch 2/2" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("previous_*"))  # resumed in place
    eval_script.main([*common, *checkpoint])
    report = json.loads((tmp_path / "stanford_report.json").read_text())
    assert report["options"]["backbone"] == name and 0 <= report["pck"] <= 1


def test_missing_packages_and_unknown_names_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="unknown backbone 'vgg': expected resnet18, .* timm:NAME"):
        build_backbone("vgg")
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("efficientnet_lite0", "timm:convnext_tiny"):
        with pytest.raises(InputError, match="pip install timm"):
            build_backbone(name)


def test_a_timm_model_without_the_four_strides_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="expected 4, 8, 16 and 32"):
        build_backbone("timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_frozen_maps_stay_and_the_others_learn(name):
    if name != "resnet18":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(name)
    backbone.freeze(2)
    images = torch.randn(4, 3, 64, 64)
    before = [m.detach() for m in backbone.train()(images)]
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    sum(m.mean() for m in backbone(images)).backward()
    optimizer.step()
    after = backbone(images)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not after[1].requires_grad and after[2].requires_grad
    assert (before[2] - after[2]).abs().max() > 0 and (before[3] - after[3]).abs().max() > 0
    count = sum(p.numel() for p in parameters)
    backbone = build_backbone(name)
    backbone.freeze(0)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) > count


def test_a_last_map_of_one_place_and_few_channels_still_sees_the_image(synthetic_body):
    """Group norm of a single number would be 0, and PyTorch refuses it for a single image."""
    model = CoarseModel(SMAL(synthetic_body / "smal"), "timm:test_efficientnet", img_res=40)
    code = model.encoder.enc_conv1
    outputs = [code(torch.randn(1, 64, 2, 2)) for _ in range(2)]
    assert outputs[0].shape == (1, 64, 1, 1) and not torch.allclose(*outputs)
