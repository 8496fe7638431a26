"""demo.py on photographs, folders and videos: what is written, and what a bad file does."""

import json
import re
import shutil
import struct
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import demo
from datasets.media import read_photograph
from engine.detect import Detector
from smal_model import SMAL
from util.errors import InputError

CATEGORIES = ["__background__", "person", "dog", "sheep"]


class PlantedMaskRCNN(MaskRCNN):
    """torchvision's own class on a tiny backbone; its detections are planted."""

    def __init__(self, detections: dict):
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 16, 1))
        backbone.out_channels = 8
        pools = [MultiScaleRoIAlign(["0"], size, 2) for size in (7, 14)]
        anchors = AnchorGenerator(((32, 64),), ((1.0,),))
        super().__init__(backbone, 4, rpn_anchor_generator=anchors, box_roi_pool=pools[0],
                         mask_roi_pool=pools[1])  # fmt: skip
        self.detections = detections

    def forward(self, images, targets=None):
        found = super().forward(images)  # its own path, from image to boxes and masks
        assert set(found[0]) == {"boxes", "labels", "scores", "masks"}
        return [self.detections]


def planted(size: int, boxes: list, labels: list, scores: list) -> PlantedMaskRCNN:
    masks = torch.zeros(len(boxes), 1, size, size)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[0, y0:y1, x0:x1] = 0.9
    values = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
    net = PlantedMaskRCNN(values | {"scores": torch.tensor(scores), "masks": masks})
    return net.eval()


def test_detector_keeps_sure_animals_once():
    """A person, an unsure dog, and a dog that is found as a sheep too, fall out."""
    boxes = [[5, 5, 60, 60], [10, 10, 40, 50], [70, 20, 110, 90], [71, 21, 111, 90], [2, 2, 9, 9]]
    net = planted(128, boxes, [1, 2, 2, 3, 2], [0.9, 0.8, 0.9, 0.7, 0.1])
    animals = Detector(net, CATEGORIES)(np.zeros((128, 128, 3), np.uint8))
    assert [a.kind for a in animals] == ["dog", "dog"]
    assert animals[0].box.tolist() == [70, 20, 40, 70]  # the surest first; x, y, width, height
    assert animals[1].mask.sum() == 30 * 40


def test_large_photographs_are_shrunk_for_the_detector():
    """Boxes and masks come back in pixels of the photograph."""
    net = planted(1333, [[100, 200, 500, 900]], [2], [0.9])
    (animal,) = Detector(net, CATEGORIES)(np.zeros((2666, 2666, 3), np.uint8))
    assert animal.box.tolist() == [200, 400, 800, 1400] and animal.mask.shape == (2666, 2666)
    rows, columns = (animal.mask.any(axis).nonzero()[0] for axis in (1, 0))
    ends = rows[0], rows[-1], columns[0], columns[-1]
    assert np.abs(np.array(ends) - (400, 1799, 200, 999)).max() <= 1


def _arguments(runs, data, out, *more):
    checkpoint = runs / "stage2" / "checkpoint.pth.tar"
    options = ["--data_dir", data, "--output_dir", out, "--checkpoint", checkpoint]
    return [*map(str, [*more, *options]), "--device", "cpu"]


@pytest.fixture
def dog(data, tmp_path):
    """A photograph of a synthetic dog, 320 x 240."""
    path = next((data / "StanfordExtra_v12" / "Images").rglob("*.jpg"))
    image = cv2.resize(cv2.imread(str(path)), (320, 240))
    cv2.imwrite(str(tmp_path / "dog.jpg"), image)
    return tmp_path / "dog.jpg"


def test_a_photograph_with_two_animals_gives_two_results(runs, data, dog, tmp_path, monkeypatch):
    boxes = [[20, 20, 150, 200], [160, 30, 300, 210]]
    net = planted(320, boxes, [2, 2], [0.9, 0.8])
    net.detections["masks"] = net.detections["masks"][:, :, :240]
    monkeypatch.setattr(demo, "open_detector", lambda *_: Detector(net, CATEGORIES))
    out = tmp_path / "out"
    assert demo.main(_arguments(runs, data, out, dog, "--turntable")) == 0
    for number, box in enumerate(boxes, 1):
        about = json.loads((out / f"dog_{number}_estimate.json").read_text())
        assert about["crop"]["center"] == [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        assert about["image"] == {"file": "dog.jpg", "width": 320, "height": 240}
        for kind in ("coarse", "refined"):
            for ending in ("obj", "glb", "ply"):
                assert (out / f"dog_{number}_{kind}.{ending}").stat().st_size > 1000
        assert cv2.imread(str(out / f"dog_{number}_overlay.png")).shape == (240, 320, 3)
        assert Image.open(out / f"dog_{number}_turntable.gif").n_frames > 8
    assert (out / "index.html").exists()


def _mesh_in_photograph(path):
    """(V, 2) column and row of the refined vertices in the photograph."""
    with np.load(path) as arrays:
        seen = arrays["verts_refined"] @ arrays["world_to_camera"][:, :3].T
        places = (seen + arrays["world_to_camera"][:, 3]) @ arrays["K_refined"].T
    return places[:, :2] / places[:, 2:]


def _outside(places, mask):
    """Fraction of places (V, 2) that lie outside a mask."""
    column, row = places.astype(int).T
    inside = (column >= 0) & (column < mask.shape[1]) & (row >= 0) & (row < mask.shape[0])
    return 1 - mask[row[inside], column[inside]].astype(bool).sum() / len(places)


def test_refine_fits_the_mask(runs, data, dog, tmp_path, capsys):
    """With a mask beside the photograph, --refine at least halves what lies outside it.

    The mask is the outline of the network's own answer, thinner and moved.
    """
    assert demo.main(_arguments(runs, data, tmp_path / "alone", dog, "--refine")) == 0
    assert "not refined, since no mask is known: dog\n" in capsys.readouterr().err
    places = _mesh_in_photograph(tmp_path / "alone" / "dog_estimate.npz")
    faces = SMAL(data / "smal").faces.numpy()
    drawn = np.zeros((240, 320), np.uint8)
    for triangle in np.round(places[faces]).astype(int):
        cv2.fillConvexPoly(drawn, triangle, 255)
    mask = cv2.erode(drawn, np.ones((7, 7), np.uint8))
    mask = cv2.warpAffine(mask, np.array([[1, 0, 8], [0, 1, 5.0]]), (320, 240))
    cv2.imwrite(str(dog.with_name("dog_mask.png")), mask)
    assert demo.main(_arguments(runs, data, tmp_path / "fitted", dog, "--refine")) == 0
    assert "not refined" not in capsys.readouterr().err
    fitted = _mesh_in_photograph(tmp_path / "fitted" / "dog_estimate.npz")
    before, after = (_outside(p, mask) for p in (places, fitted))
    assert before > 0.1 and after < before / 2


def _huge_png(path):
    """A PNG whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_a_folder_of_mixed_files_ends_with_the_good_ones_done(runs, data, dog, tmp_path, capsys):
    folder = tmp_path / "mixed"
    (folder / "empty").mkdir(parents=True)
    image = Image.open(dog)
    image.save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    image.save(folder / "phone.jpg", exif=exif)
    image.convert("P").save(folder / "moving.gif")
    (folder / "notes.txt").write_text("no photograph")
    (folder / "broken.jpg").write_bytes(dog.read_bytes()[:700])
    _huge_png(folder / "huge.png")
    out = tmp_path / "out"
    status = demo.main(_arguments(runs, data, out, folder, "--detector", "none"))
    assert status == 1
    told = capsys.readouterr().err
    assert "broken.jpg" in told and "huge.png" in told and "notes.txt" in told
    assert {p.name for p in out.glob("*_overlay.png")} == {
        "plain_overlay.png", "phone_overlay.png", "moving_overlay.png"
    }  # fmt: skip
    assert cv2.imread(str(out / "phone_overlay.png")).shape == (320, 240, 3)  # upright


def test_a_video_gives_a_video_and_a_sequence(runs, data, dog, tmp_path):
    image = cv2.imread(str(dog))
    path = tmp_path / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    for shift in range(6):
        writer.write(np.roll(image, 4 * shift, 1))
    writer.release()
    out = tmp_path / "out"
    longer = out / "walk_sequence" / "000006.obj"  # of an earlier video of this name
    longer.parent.mkdir(parents=True)
    for name in ("000006.obj", "000005.obj", "notes.txt"):
        longer.with_name(name).write_text("old")
    assert demo.main(_arguments(runs, data, out, path, "--detector", "none")) == 0
    assert not longer.exists() and longer.with_name("notes.txt").exists()
    assert json.loads((out / "demo_args.json").read_text())["options"]["detector"] == "none"
    with np.load(out / "walk_sequence.npz") as arrays:
        assert len(arrays["verts"]) == 6
        assert (arrays["betas"] == arrays["betas"][:1]).all()  # one shape for all frames
    assert cv2.VideoCapture(str(out / "walk.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert len(list((out / "walk_sequence").glob("*.obj"))) == 6


def test_the_embedded_body_is_made_where_there_is_none(runs, dog, tmp_path):
    out = tmp_path / "out"
    assert demo.main(_arguments(runs, tmp_path / "none", out, dog, "--bbox", "10,10,200,200")) == 0
    assert (out / "dog_refined.glb").exists() and (out / "body" / "smal").is_dir()


def test_nothing_to_read_is_said(runs, data, tmp_path):
    with pytest.raises(InputError, match="nowhere.jpg is missing"):
        demo.main(_arguments(runs, data, tmp_path / "out", tmp_path / "nowhere.jpg"))


def test_a_video_of_an_odd_frame_rate_has_its_frames(runs, data, dog, tmp_path):
    path = tmp_path / "slow.avi"
    _write_video(path, cv2.imread(str(dog)), "MJPG", rate=119.957)
    assert demo.main(_arguments(runs, data, tmp_path / "out", path, "--bbox", "9,9,200,200")) == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "slow.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(119.957, abs=0.01)


def _write_video(path, image, code="mp4v", rate=10, count=2):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (320, 240))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for _ in range(count):
        writer.write(image)
    writer.release()


def test_a_box_outside_a_video_is_named(runs, data, dog, tmp_path, capsys):
    path = tmp_path / "walk.mp4"
    _write_video(path, cv2.imread(str(dog)))
    arguments = _arguments(runs, data, tmp_path / "out", path, "--bbox", "400,10,50,50")
    assert demo.main(arguments) == 1
    said = capsys.readouterr().err
    assert f"{path} has 320 x 240 pixels: the box of --bbox lies outside it" in said
    assert not list((tmp_path / "out").glob("walk*"))


def test_files_of_one_name_keep_all_their_results(runs, data, dog, tmp_path):
    """Photographs, videos and both, in one folder or in several."""
    image = cv2.imread(str(dog))
    for folder in ("a", "b"):
        (tmp_path / "all" / folder).mkdir(parents=True)
        _write_video(tmp_path / "all" / folder / "dog.mp4", image)
        (tmp_path / "all" / folder / "dog.jpg").write_bytes(dog.read_bytes())
    _write_video(tmp_path / "all" / "a" / "dog.avi", image, "MJPG")
    out = tmp_path / "out"
    arguments = _arguments(runs, data, out, tmp_path / "all", "--detector", "none")
    assert demo.main(arguments) == 0
    # sorted: a/dog.avi, a/dog.jpg, a/dog.mp4, b/dog.jpg, b/dog.mp4
    assert {p.name for p in out.glob("*_overlay.png")} == {f"dog_{i}_overlay.png" for i in (1, 3)}
    assert {p.name for p in out.glob("*.mp4")} == {f"dog_{i}.mp4" for i in (0, 2, 4)}
    assert {p.name for p in out.glob("*.npz") if "sequence" in p.name} == {
        f"dog_{i}_sequence.npz" for i in (0, 2, 4)
    }
    page = (out / "index.html").read_text()
    assert all(f"dog_{i}" in page for i in range(5))


def test_a_second_animal_does_not_take_the_name_of_another_photograph(
    runs, data, dog, tmp_path, monkeypatch
):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "dog.jpg").write_bytes(dog.read_bytes())
    (folder / "dog_2.jpg").write_bytes(dog.read_bytes())
    net = planted(320, [[20, 20, 150, 200], [160, 30, 300, 210]], [2, 2], [0.9, 0.8])
    net.detections["masks"] = net.detections["masks"][:, :, :240]
    monkeypatch.setattr(demo, "open_detector", lambda *_: Detector(net, CATEGORIES))
    out = tmp_path / "out"
    assert demo.main(_arguments(runs, data, out, folder)) == 0
    names = {p.name.removesuffix("_overlay.png") for p in out.glob("*_overlay.png")}
    assert names == {"dog_1_", "dog_2_", "dog_2_1", "dog_2_2"}


def test_a_box_outside_the_photograph_is_named(runs, data, dog, tmp_path, capsys):
    out = tmp_path / "out"
    assert demo.main(_arguments(runs, data, out, dog, "--bbox", "320,10,50,50")) == 1
    assert "dog.jpg has 320 x 240 pixels: the box of --bbox" in capsys.readouterr().err
    assert not list(out.glob("*_overlay.png"))


def test_options_that_lead_nowhere_are_refused_before_anything_is_made(runs, data, dog, tmp_path):
    out = tmp_path / "out"
    for more in (["--bbox", "0,0,50,50"], ["--detector", "none"]):
        with pytest.raises(InputError, match=f"--detector_weights has no effect with {more[0]}"):
            demo.main(_arguments(runs, data, out, dog, "--detector_weights", dog, *more))
    with pytest.raises(InputError, match="not a checkpoint"):
        demo.main(_arguments(runs, data, out, dog, "--detector_weights", dog))
    with pytest.raises(InputError, match="could replace it"):
        demo.main(_arguments(runs, data, tmp_path, dog))
    assert not out.exists()


def test_a_box_without_the_mask_has_none(dog, data):
    photograph = read_photograph(dog)
    mask = np.zeros((240, 320), np.uint8)
    mask[100:200, 150:300] = 1
    photograph = replace(photograph, mask=mask, box=(150, 100, 150, 100))
    (inside,) = demo.animals_of(photograph, (-20, 50, 200, 100), None)
    (beside,) = demo.animals_of(photograph, (-20, -10, 160, 300), None)
    assert inside.mask is mask and beside.mask is None
    with pytest.raises(InputError, match="the box of --bbox is far larger"):
        demo.animals_of(photograph, (0, 0, 1e30, 1e30), None)


def test_a_video_that_is_cut_off_is_named(runs, data, dog, tmp_path, capfd):
    path = tmp_path / "clip.avi"
    _write_video(path, cv2.imread(str(dog)), "MJPG", count=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert demo.main(_arguments(runs, data, tmp_path / "out", path)) == 0
    assert re.search(r"clip.avi ends after \d of \d+ frames", capfd.readouterr().err)


def test_a_mesh_that_is_not_finite_is_named_and_stops_no_other(
    runs, data, dog, tmp_path, monkeypatch, capsys
):
    """Of the first of two photographs, and of a video; the weights are finite."""
    forward = SMAL.forward

    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        factor = torch.ones(len(out.verts), 1, 1)
        factor[0] = float("nan")
        return replace(out, verts=out.verts * factor)

    _write_video(tmp_path / "clip.mp4", cv2.imread(str(dog)))
    shutil.copy(dog, tmp_path / "other.jpg")
    inputs = dog, tmp_path / "other.jpg", tmp_path / "clip.mp4"
    monkeypatch.setattr(SMAL, "forward", broken)
    assert demo.main(_arguments(runs, data, tmp_path / "out", *inputs)) == 1
    said = capsys.readouterr().err
    assert re.search("not done: the network's mesh of .*dog.jpg is not finite", said)
    assert "not done: the network's mesh of clip is not finite" in said
    assert (tmp_path / "out" / "other_overlay.png").exists()
    assert not list((tmp_path / "out").glob("dog_*")) + list((tmp_path / "out").glob("clip*"))
