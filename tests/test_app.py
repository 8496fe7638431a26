"""app.py in a browser: it renders, it predicts, and nothing leaves the machine."""

from urllib.parse import urlparse

import cv2
import pytest

import app
from engine.prediction_options import app_parser
from tests.browser import Browser


@pytest.fixture
def served(runs, data, tmp_path):
    pytest.importorskip("gradio", reason="gradio is optional: pip install gradio")
    checkpoint = runs / "stage2" / "checkpoint.pth.tar"
    options = ["--checkpoint", checkpoint, "--data_dir", data, "--output_dir", tmp_path / "out"]
    options += ["--device", "cpu", "--detector", "none"]
    built = app.build_app(app_parser().parse_args([*map(str, options)]))
    _, address, _ = built.launch(
        prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path / "out")]
    )
    yield address
    built.close()


def test_a_photograph_gives_overlay_mesh_and_files(served, data):
    from gradio_client import Client, handle_file

    path = next((data / "StanfordExtra_v12" / "Images").rglob("*.jpg"))
    client = Client(served, verbose=False)
    overlay, mesh, files = client.predict(handle_file(str(path)), False, api_name="/predict")
    shown = overlay["path"] if isinstance(overlay, dict) else overlay
    assert cv2.imread(shown).shape == cv2.imread(str(path)).shape
    assert str(mesh).endswith(".glb")
    assert {str(f).rpartition(".")[2] for f in files} == {"glb", "obj", "ply", "json"}


def test_the_page_asks_for_nothing_outside_the_machine(served, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.open(served)
        browser.wait("document.body.innerText.includes('Find the mesh')")
        hosts = {urlparse(address).hostname for address in browser.requests}
        assert hosts <= {"127.0.0.1", "localhost", None}, hosts
    finally:
        browser.close()
