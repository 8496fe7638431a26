"""What a run leaves for TensorBoard: best scores and options to compare runs by, and meshes."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData
from torch.utils.data import default_collate

import datasets
from engine.run_folder import SilentRun
from model.outputs import Estimate, ImageFeatures, Prediction
from report.preview import NUM_MESHES, NUM_STRIPS, Preview
from smal_model import SMAL
from tests.engine.few import read_content

LEGS = [*range(7, 15), *range(17, 25)]  # joints


@pytest.fixture(scope="module")
def events(runs):
    read = EventAccumulator(str(runs / "stage3"), size_guidance={"tensors": 0})
    read.Reload()
    return read


def _values(events, tag):
    return [np.array(e.tensor_proto.float_val) for e in events.Tensors(tag)]


def test_options_and_best_scores_are_those_of_the_run(events, runs):
    kinds = {}
    for tag, content in events.PluginTagToContent("hparams").items():
        read = HParamsPluginData.FromString(content)
        kinds[tag.rpartition("/")[2]] = read
    options = kinds["session_start_info"].session_start_info.hparams
    stored = read_content(runs / "stage3" / "checkpoint.pth.tar")
    known = {**stored["training"], **stored["options"]}
    for name, value in known.items():
        if isinstance(value, str):
            assert options[name].string_value == value, name
        elif value is not None and abs(value) != float("inf"):
            assert options[name].number_value == value, name
    assert "grad_clip" not in options  # infinite: JSON, and so TensorBoard's page, has no word
    assert options["nEpochs"].number_value == 1
    named = [m.name.tag for m in kinds["experiment"].experiment.metric_infos]
    assert named == [f"best/{k}" for k in ("score", "pck", "iou", "pck_refined", "iou_refined")]
    assert events.Scalars("best/score")[-1].value == pytest.approx(stored["best_score"])
    for tag in named[1:]:
        expected = events.Scalars(tag.replace("best", "val"))[-1].value
        assert events.Scalars(tag)[-1].value == expected
    assert kinds["session_end_info"].session_end_info.status == 1  # success


def test_meshes_are_few_whole_and_to_scale(events, runs, data):
    smal = SMAL(data / "smal")
    tags = sorted(events.PluginTagToContent("mesh"))
    parts = ("COLOR", "FACE", "VERTEX")
    assert tags == [f"val/mesh_{i}_{part}" for i in (1, 2) for part in parts]
    for i in (1, 2):
        color, face, vertex = (_values(events, f"val/mesh_{i}_{part}")[-1] for part in parts)
        assert vertex.size == 3 * smal.num_verts and np.ptp(vertex) > 0.5
        turned = face.astype(int).reshape(-1, 3)
        assert np.array_equal(np.sort(turned), np.sort(smal.faces.numpy()))
        assert color.size == vertex.size and color.min() >= 0 and 1 < color.max() <= 255
    content = events.PluginTagToContent("mesh")["val/mesh_1_VERTEX"]
    view = json.loads(MeshPluginData.FromString(content).json_config)
    assert view["camera"]["cls"] == "PerspectiveCamera"
    (file,) = (runs / "stage3").glob("events.out.tfevents.*")
    meshes = len(events.Scalars("val/pck")) * NUM_MESHES
    most_of_meshes = meshes * 4 * (6 * smal.num_verts + 3 * len(smal.faces))
    images = sum(len(e.encoded_image_string) for e in events.Images("val"))
    assert file.stat().st_size < 1.1 * most_of_meshes + images + 50_000


class Recorder(SilentRun):
    def __init__(self):
        self.images, self.meshes = [], {}

    def image(self, name, image, step):
        self.images.append((name, image.shape, step))

    def mesh(self, name, verts, faces, colors, step):
        self.meshes[name] = verts, faces, colors


class Answer:
    """In place of the networks: one body in the middle of every image."""

    device = torch.device("cpu")

    def __init__(self, smal):
        self.smal = smal

    def eval(self):
        return self

    def __call__(self, images):
        n = len(images)
        pose = torch.zeros(n, 3 * self.smal.num_joints)
        pose[:, :3] = torch.tensor([-1.20919958, 1.20919958, 1.20919958])  # upright
        betas, trans = torch.zeros(n, 20), torch.tensor([[0.0, 0.0, 1.0]]).repeat(n, 1)
        body = self.smal(betas, pose, trans)
        coarse = Estimate(body.verts, body.joints, torch.zeros(n, 1))
        features = ImageFeatures((), torch.zeros(n, 0))
        return Prediction(coarse, trans, pose, betas, None, features)


def test_preview_shows_the_first_images_upright(data):
    smal = SMAL(data / "smal")
    images = datasets.build_dataset("stanford", data, "train", img_res=64)
    run = Recorder()
    Preview(Answer(smal), images).show(run, 7)
    assert [(name, step) for name, _, step in run.images] == [("val", 7)]
    assert list(run.meshes) == ["val/mesh_1", "val/mesh_2"] and NUM_STRIPS > NUM_MESHES
    batch = default_collate([images[i] for i in range(2)])
    expected = Answer(smal)(batch["image"]).coarse
    for i, (verts, faces, colors) in enumerate(run.meshes.values()):
        own = expected.verts[i].numpy()
        np.testing.assert_allclose(verts, own * [1, 1, -1], atol=1e-6)  # y stays up
        assert smal.weights[verts[:, 1].argmin(), LEGS].sum() > 0.5  # it stands on its legs
        a, b, c = (verts - verts.mean(0))[faces].transpose(1, 0, 2)
        assert (a * np.cross(b, c)).sum() > 0  # normals point outward
        assert colors.min() >= 0 and colors.max() <= 1
    assert not np.array_equal(run.meshes["val/mesh_1"][2], run.meshes["val/mesh_2"][2])
