"""Steps that are recorded as a CUDA graph: where there is no GPU, with a graph that computes."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from engine import cuda_graph
from engine.checkpoint import TrainState
from engine.cuda_graph import WARM_UP, RecordedGradients, captured
from engine.loop import Hooks, Statistics, step_gradients, train_epoch
from engine.losses import Criterion, LossWeights
from model import CoarseToFine, NetworkConfig
from smal_model import SMAL, MeshHierarchy, priors
from tests.engine.test_accumulation import _labelled

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SIZE = 4  # images a batch


class ComputedGraph:
    """Stands in for a CUDA graph: a replay computes anew, into the recorded tensors."""

    recorder: RecordedGradients

    def replay(self):
        own = self.recorder
        for parameter in own.parameters:
            parameter.grad = None
        new = own.compute(own.inputs)
        for name, value in own.terms.items():
            value.copy_(new[name])
        for grad, parameter in zip(own.grads, own.parameters, strict=True):
            grad.copy_(parameter.grad)


@pytest.fixture
def graph(monkeypatch):
    """The graph that is recorded on the CPU."""
    made = ComputedGraph()

    @contextmanager
    def record(found, device):
        assert found is made and device.type == "cpu"
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made)
    monkeypatch.setattr(cuda_graph, "captured", record)
    return made


def line(weight):
    """Takes a batch; gradient and loss of the mean of weight . x."""

    def compute(batch):
        loss = (batch["x"] @ weight).mean()
        loss.backward()
        return {"loss": loss.detach()}

    return compute


def batches(sizes):
    return [{"x": torch.randn(size, 3), "name": ["a"] * size} for size in sizes]


def test_batches_of_one_shape_are_replayed_and_others_computed(graph):
    weight = nn.Parameter(torch.randn(3))
    gradients = graph.recorder = RecordedGradients(line(weight), [weight])
    replayed = []
    for batch in batches([4, 2, 4, 2, 4, 4, 4, 2, 2, 2, 4]):
        weight.grad = None
        terms = gradients(batch)
        replayed.append(gradients.replayed)
        torch.testing.assert_close(weight.grad, batch["x"].mean(0))
        torch.testing.assert_close(terms["loss"], batch["x"].mean(0) @ weight.detach())
    assert WARM_UP == 3 and replayed == [False] * 5 + [True, True, False, False, False, True]


@pytest.mark.parametrize("reason", ["not permitted when stream is capturing\nmore", ""])
def test_where_recording_fails_a_line_says_why_and_all_is_computed(monkeypatch, capsys, reason):
    @contextmanager
    def refuse(*_):
        yield
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(cuda_graph, "captured", refuse)
    weight = nn.Parameter(torch.randn(3))
    gradients = RecordedGradients(line(weight), [weight])
    for batch in batches([4] * 6):
        weight.grad = None
        gradients(batch)
        torch.testing.assert_close(weight.grad, batch["x"].mean(0))
        assert not gradients.replayed
    said = reason.partition("\n")[0] or "RuntimeError"
    assert capsys.readouterr().out.count(f"take longer: {said}\n") == 1
    assert not gradients.inputs and not gradients.terms


def test_a_replay_that_is_not_finite_is_computed(graph):
    """Weights and statistics are those of a run without a graph."""

    class Model(nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

    class Batches(list):
        dataset = range(6 * 4)

    def train(recorded):
        torch.manual_seed(0)
        model = Model()
        loader = Batches({"x": torch.randn(4, 3), "image": torch.zeros(4)} for _ in range(6))
        parameters = [*model.parameters()]

        def compute(batch):
            loss = model.norm(batch["x"]).square().sum() + model.norm.bias.exp().sum()
            loss.backward()
            return {"loss": loss.detach(), "gradient": torch.ones(())}

        gradients = graph.recorder = RecordedGradients(compute, parameters, recorded)
        if recorded:
            graph.replay = lambda: (ComputedGraph.replay(graph), spoil(gradients))
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        state = TrainState(model, optimizer, NetworkConfig(), 1)
        replays.clear()
        means = train_epoch(state, gradients, loader, hooks=Hooks())
        return means, model.state_dict(), len(replays)

    replays = []

    def spoil(gradients):
        replays.append(1)
        gradients.terms["loss"].fill_(torch.nan)

    (means, state, none), (others, other, some) = train(False), train(True)
    assert none == 0 and some == 6 - WARM_UP and means == others
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def parts(folder, **network):
    """State and criterion of a small network on the GPU, without TF32's rounding."""
    torch.manual_seed(0)
    smal = SMAL(folder / "smal")
    hierarchy = MeshHierarchy.load(folder / "mesh_down_sampling_4.npz")
    size = {"backbone": "resnet18", "img_res": 64, "num_channels": 16}
    model = CoarseToFine(smal, hierarchy, **size, **network).cuda()
    prior = priors.shape_prior("smal", smal, folder), priors.pose_prior("smal", folder)
    maps = {"maps": 30, "outline": 20, "maps_refine": 30, "verts_refine": 60} if network else {}
    weights = LossWeights(dice=100, dice_refine=100, kpts_refine=2, arap=1000, **maps)
    criterion = Criterion(weights, model.smal, *prior).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    return TrainState(model, optimizer, NetworkConfig(), 3), criterion


@pytest.fixture
def exact():
    """Convolutions in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@needs_gpu
@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("room", [None, 0])
def test_on_a_gpu_replays_give_the_gradients_that_are_computed(
    synthetic_body, monkeypatch, exact, maps, room
):
    """room 0: the lists of faces do not fit, and the silhouettes are NaN."""
    from render import triton_cuda

    if room is not None:
        monkeypatch.setattr(triton_cuda, "CAPTURED", room)
    network = dict.fromkeys(("keypoint_maps", "outline", "second_look"), True) if maps else {}
    state, criterion = parts(synthetic_body, **network)
    gradients = step_gradients(state, criterion)
    statistics = Statistics(state.model.train())
    for turn in range(WARM_UP + 3):
        batch = _labelled(state.model.smal, SIZE)
        batch = {k: v.roll(turn, 0) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        batch["keypoints"][..., :2] += turn
        found = []
        for compute in (gradients, gradients.compute):
            statistics.remember()
            state.optimizer.zero_grad(set_to_none=True)
            terms = {name: value.item() for name, value in compute(batch).items()}
            named = state.model.named_parameters()
            grads = {n: p.grad.clone() for n, p in named if p.grad is not None}
            found.append((terms, grads))
            statistics.restore()
        (terms, grads), (others, other) = found
        assert gradients.replayed == (turn >= WARM_UP)
        if room == 0 and gradients.replayed:
            assert terms["loss"] != terms["loss"] and others["loss"] == others["loss"]
            continue
        assert terms == pytest.approx(others, rel=1e-4)
        assert grads.keys() == other.keys()
        largest = max(float(g.abs().max()) for g in other.values())
        for name, grad in grads.items():
            assert float((grad - other[name]).abs().max()) < 1e-3 * largest, name


@needs_gpu
def test_on_a_gpu_a_failed_recording_leaves_random_numbers_as_they_were():
    torch.manual_seed(3)
    wanted = torch.randn(4, device="cuda")
    torch.manual_seed(3)
    with pytest.raises(RuntimeError), captured(torch.cuda.CUDAGraph(), torch.device("cuda", 0)):
        torch.randn(8, device="cuda").sum().item()
    assert torch.equal(torch.randn(4, device="cuda"), wanted)
