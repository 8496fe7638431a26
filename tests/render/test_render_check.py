"""`render.check`: a backend that computes something else, or stops, is found before work starts."""

import warnings

import pytest
import torch

import render
from tests.render.render_scenes import require


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    require("numba")
    monkeypatch.setattr(render, "_faults", {})


def break_numba(monkeypatch, name: str, change) -> None:
    from render import numba_cpu

    function = getattr(numba_cpu, name)
    monkeypatch.setattr(numba_cpu, name, lambda *arguments: change(function(*arguments)))


def scaled_gradient(silhouette: torch.Tensor) -> torch.Tensor:
    return silhouette + 0.01 * (silhouette - silhouette.detach())


def shifted_faces(result: tuple) -> tuple:
    return torch.where(result[0] >= 0, result[0] - 1, result[0]), *result[1:]


def stop(_) -> None:
    raise OSError("no folder for compiled code")


FAULTS = {
    "silhouettes": ("soft_silhouette", lambda silhouette: silhouette * 0.999),
    "gradients": ("soft_silhouette", scaled_gradient),
    "repeated": ("soft_silhouette", lambda s: s + 9e-5 * torch.rand(s.shape)),
    "coverage": ("coverage", lambda covered: covered.round()),
    "depths": ("rasterize", lambda result: (result[0], result[1] / 0, result[2])),
    "nearest faces": ("rasterize", shifted_faces),
    "stops with OSError: no folder": ("coverage", stop),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_makes_auto_fall_back_and_others_stop_with_the_same_sentence(fault, monkeypatch):
    break_numba(monkeypatch, *FAULTS[fault])
    with pytest.warns(UserWarning, match=f"'numba' does not work on cpu: .*{fault}.*'torch'"):
        assert render.check("cpu") == "torch"
    with pytest.raises(RuntimeError, match=f"'numba' does not work on cpu: .*{fault}"):
        render.check("cpu", "numba")
    assert render.choose_backend("auto", torch.zeros(1, 3, 3)) == "torch"
    assert render.choose_backend("numba", torch.zeros(1, 3, 3)) == "numba"


def test_a_sound_backend_is_compared_once(monkeypatch):
    calls = []
    break_numba(monkeypatch, "coverage", lambda covered: (calls.append(1), covered)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render.check("cpu") == render.check(torch.device("cpu"), "numba") == "numba"
    assert len(calls) == 5  # scenes
    assert render.check("cpu", "torch") == "torch"
    assert render.choose_backend("auto", torch.zeros(1, 3, 3)) == "numba"


def test_nothing_goes_on_where_the_device_is_left_unusable(monkeypatch):
    def lost(_) -> None:
        monkeypatch.setattr(torch, "zeros", stop_too)
        raise RuntimeError("an illegal memory access was encountered")

    def stop_too(*_, **__) -> None:
        raise RuntimeError("device lost")

    break_numba(monkeypatch, "coverage", lost)
    with pytest.raises(RuntimeError, match="illegal memory access.*leaves the device unusable"):
        render.check("cpu")


def test_a_missing_or_unfit_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match="backend 'opengl'"):
        render.check("cpu", "opengl")
    require("triton")
    with pytest.raises(RuntimeError, match="'triton' does not work on cpu.*needs CUDA tensors"):
        render.check("cpu", "triton")
    monkeypatch.setattr(render, "_installed", lambda package: package == "torch")
    assert render.check("cpu") == "torch"
    with pytest.raises(ModuleNotFoundError, match="numba, which is not installed"):
        render.check("cpu", "numba")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_cuda_device_passes():
    require("triton")
    for index in range(torch.cuda.device_count()):
        assert render.check(f"cuda:{index}", "triton") == "triton"
