"""The page beside results: its numbers, what it may not run or ask for, and how it behaves."""

import base64
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

from report.page import PageImage, group_pck, pck_curve, write_page
from tests.browser import Browser
from util.metrics import GROUPS, pck

EVIL = '</script><script>window.ran = 1</script><img src=x onerror="ran=1">"&{{data}} #50%?.png'


def ball(subdivisions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A long body and a smaller one behind it, seen from the end."""
    sphere = trimesh.creation.icosphere(subdivisions)
    verts, faces = sphere.vertices * [0.4, 0.5, 1.0], sphere.faces
    behind = sphere.vertices * 0.2 + [0, 0, 1.3]
    return np.concatenate([verts, behind]), np.concatenate([faces, faces + len(verts)])


def make_images(folder: Path) -> list[PageImage]:
    """Six images: one with a name that wants to run, one without PCK, one without a mesh."""
    verts, _ = ball()
    front = np.where(verts[:, 2:] < 0, (0.9, 0.1, 0.1), (0.1, 0.1, 0.9))  # red, blue behind
    rng = np.random.default_rng(0)
    images = []
    for i in range(6):
        name = EVIL if i == 2 else f"dog_{i}"
        strip = np.full((258, 1820, 3), 40 * i, np.uint8)
        strip_name = f"{i} #%?.png" if i == 2 else f"dog_{i}.png"
        cv2.imwrite(str(folder / strip_name), strip)
        scores = {"pck": 0.905 - 0.1 * i, "iou": 0.305 + 0.1 * i, "pa_mpvpe": 0.05 + 0.01 * i}
        scores |= {f"{key}_refined": value + 0.02 for key, value in scores.items()}
        if i == 4:
            scores["pck"] = scores["pck_refined"] = float("nan")
        errors = rng.uniform(0, 0.3, 20)
        errors[rng.random(20) < 0.2] = np.nan
        meshes = {"coarse": torch.tensor(verts), "refined": verts * [1.4, 1, 1]}
        images.append(
            PageImage(
                name,
                strip_name,
                scores,
                {} if i == 3 else meshes,
                {"coarse": front},
                {"coarse": errors, "refined": errors / 2},
                {"glb": f"{name}.glb"},
            )
        )
    return images


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_page(folder, f"Test {EVIL}", make_images(folder), ball()[1], {"checkpoint": EVIL})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture
def opened(browser, page):
    browser.resize(1440, 900)
    browser.open(page.as_uri())
    browser.wait("document.getElementById('canvas').dataset.drawn")
    return browser


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    """Where screenshots go: the folder SCREENSHOTS of the environment, else pytest's own."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path_factory.mktemp("screenshots")))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def names(browser: Browser) -> list[str]:
    rows = "[...document.querySelectorAll('#rows th')].map((cell) => cell.textContent)"
    return browser.run(rows)


def box(browser: Browser) -> list[int]:
    """Column, row, width and height of the viewer on the screen."""
    rectangle = "(({x, y, width, height}) => [x, y, width, height])(canvas.getBoundingClientRect())"
    return [int(value) for value in browser.run(rectangle)]


def stage(browser: Browser, path: Path) -> np.ndarray:
    """The viewer's pixels without rim and labels, once what was asked for is drawn."""
    frame = "new Promise((done) => requestAnimationFrame(() => done(1)))"
    for _ in range(2):
        browser.run(frame)
    browser.screenshot(path)
    x, y, width, height = box(browser)
    return cv2.imread(str(path))[y + 45 : y + height - 5, x + 5 : x + width - 5, ::-1].astype(int)


def red(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] > pixels[..., 1:].max(-1) + 60


def body(pixels: np.ndarray) -> np.ndarray:
    """Where the red and blue body is: the stage has no such colours."""
    return pixels.max(-1) - pixels.min(-1) > 60


def test_nothing_in_a_name_runs_and_nothing_is_asked_for(page):
    text = page.read_text()
    assert re.findall(r"<script[^>]*>", text) == [
        '<script type="application/json" id="data">',
        '<script src="page/three.min.js">',
        "<script>",
    ]
    assert (
        "<img src=x" not in text and text.count("&lt;/script&gt;") == 6
    )  # two each in title, heading, fact
    assert data_of(page)["images"][2]["name"] == EVIL
    assert data_of(page)["images"][2]["strip"] == "./2%20%23%25%3F.png"
    for file in (page, *(page.parent / "page").glob("*.js")):
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", file.read_text()))
        assert addresses <= {"http://www.w3.org"}  # the name of XHTML's namespace
    assert "MIT" in (page.parent / "page" / "three.LICENSE").read_text()


def test_meshes_come_back_as_they_were(page):
    data = data_of(page)
    verts, faces = ball()
    found = np.frombuffer(base64.b64decode(data["faces"]), "<u4" if data["wide"] else "<u2")
    assert not data["wide"] and sorted(map(sorted, found.reshape(-1, 3))) == sorted(
        map(sorted, faces)
    )
    text = (page.parent / "page" / "mesh_0000.js").read_text()
    coarse, refined = json.loads(text[len("receiveMeshes(0,") : -2])
    for mesh, expected in ((coarse, verts), (refined, verts * [1.4, 1, 1])):
        whole = np.frombuffer(base64.b64decode(mesh["verts"]), "<u2").reshape(-1, 3)
        assert np.abs(whole * mesh["step"] + mesh["low"] - expected * [1, 1, -1]).max() < 2e-5
        a, b, c = (whole * mesh["step"])[found.reshape(-1, 3)].transpose(1, 0, 2)
        assert (a * np.cross(b, c)).sum() > 0  # normals point outward
    assert set(base64.b64decode(coarse["colors"])) == {26, 230} and refined["colors"] is None
    assert not (page.parent / "page" / "mesh_0003.js").exists()


def test_curves_agree_with_the_metric():
    rng = np.random.default_rng(1)
    keypoints = torch.tensor(rng.uniform(0, 224, (7, 20, 3)), dtype=torch.float32)
    keypoints[..., 2] = torch.tensor(rng.random((7, 20)) < 0.6)
    keypoints[2, :, 2] = 0
    keypoints[:, 16:18, 2] = 0  # no face in any image
    predicted = keypoints[..., :2] + torch.tensor(rng.normal(0, 12, (7, 20, 2))).float()
    area = torch.full((7,), 10000.0)
    errors = (predicted - keypoints[..., :2]).norm(dim=2) / 100
    errors = torch.where(keypoints[..., 2] > 0, errors, torch.nan).numpy()
    thresholds = np.array([0.05, 0.1, 0.15])
    expected = [float(pck(predicted, keypoints, area, t).nanmean()) for t in thresholds]
    assert np.allclose(pck_curve(errors, thresholds), expected)
    groups = group_pck(errors)
    assert list(groups) == ["all", *(name for name in GROUPS if name != "face")]
    for name, value in groups.items():
        group = None if name == "all" else name
        assert value == pytest.approx(float(pck(predicted, keypoints, area, 0.15, group).nanmean()))


def test_the_size_of_a_hundred_images(tmp_path, synthetic_body):
    from smal_model import SMAL

    smal = SMAL(synthetic_body / "smal")
    mesh, colors = smal.template, np.random.default_rng(0).random((smal.num_verts, 3))
    meshes = {"coarse": mesh, "refined": mesh}
    images = [
        PageImage(f"{i}", None, {"iou": 0.5}, meshes, dict.fromkeys(meshes, colors))
        for i in range(100)
    ]
    page = write_page(tmp_path, "Hundred", images, smal.faces)
    size = page.stat().st_size + sum(file.stat().st_size for file in (tmp_path / "page").iterdir())
    assert page.stat().st_size < 1e6 and size < 30e6


def test_images_without_scores_or_anything(tmp_path):
    _, faces = ball()
    page = write_page(tmp_path, "Photographs", [PageImage("b"), PageImage("a")], faces)
    data = data_of(page)
    assert data["columns"] == [] and data["main"] == -1
    text = page.read_text()
    assert 'class="means"' not in text and 'class="charts"' not in text and "2 images" in text
    assert data_of(write_page(tmp_path, "None", [], faces))["images"] == []


def test_columns_and_figures(page):
    data = data_of(page)
    labels = [(column["label"], column["mesh"]) for column in data["columns"]]
    assert labels == [
        (label, mesh) for label in ("PCK@0.15", "IoU", "PA-MPVPE") for mesh in ("coarse", "refined")
    ]
    assert data["columns"][data["main"]]["key"] == "iou_refined"
    assert data["images"][4]["scores"][0] is None
    text = page.read_text()
    assert text.count("<figure") == 4 and text.count("<polyline") == 2
    assert "<strong>68.5&#8201;%</strong>" in text  # mean of .905 .805 .705 .605 .405
    counts = [int(n) for n in re.findall(r"<title>coarse: (\d) from", text)]
    assert counts == [0, 0, 0, 0, 1, 0, 1, 1, 1, 1] + [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    curve = re.findall(r'<polyline class="coarse" points="(.*?)"', text)[0].split()
    errors = np.stack([image.errors["coarse"] for image in make_images(page.parent)])
    within = 1 - pck_curve(errors, np.array([0.15]))[0]
    x, y = (float(value) for value in curve[30].split(","))  # the middle: 0.15
    bottom, top = 168, 8
    assert x == pytest.approx((34 + 304) / 2) and y == pytest.approx(
        top + within * (bottom - top), abs=0.1
    )
    assert len(curve) == 61 and float(curve[-1].split(",")[0]) == 304


# ---------------------------------------------------------------- in a browser


def test_it_shows_the_best_image_and_keeps_to_the_disk(opened, page, screenshots):
    shown = opened.run("document.getElementById('name').textContent")
    assert shown == "dog_5" == names(opened)[0]
    pixels = stage(opened, screenshots / "desktop.png")
    half = pixels.shape[1] // 2
    assert red(pixels[:, :half]).mean() > 0.03 and red(pixels[:, half:]).mean() == 0
    assert opened.run("viewer.kind") == "webgl"
    assert (
        opened.run("window.ran") is None
        and opened.run("document.querySelectorAll('#rows tr').length") == 6
    )
    assert opened.requests and all(r.startswith(("file:", "data:")) for r in opened.requests)
    loaded = [Path(r).name for r in opened.requests if "mesh_" in r]
    assert loaded == ["mesh_0005.js"]  # only what is looked at
    assert opened.errors == []
    assert opened.run("document.getElementById('strip-image').naturalWidth") == 1820
    opened.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    opened.screenshot(screenshots / "dark.png")
    opened.send("Emulation.setEmulatedMedia", features=[])
    opened.run("document.querySelector('.charts').scrollIntoView({behavior: 'instant'})")
    opened.screenshot(screenshots / "figures.png")


def test_its_policy_stops_what_would_leave_the_machine(opened):
    opened.run(
        "document.addEventListener('securitypolicyviolation', (e) => (stopped = e.blockedURI));"
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    assert opened.wait("window.stopped") == "http://127.0.0.1:9/x.png"
    assert (
        opened.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
    )
    opened.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'ran = 1'}))"
    )
    assert opened.run("window.ran") is None


def test_it_sorts(opened):
    best = names(opened)
    assert [n for n in best if n.startswith("dog")] == ["dog_5", "dog_4", "dog_3", "dog_1", "dog_0"]
    opened.run("document.getElementById('worst').click()")
    assert names(opened) == best[::-1]
    opened.key("2")  # coarse PCK, best first; the image that has none is last
    assert names(opened)[0] == "dog_0" and names(opened)[-1] == "dog_4"
    opened.key("w")
    assert names(opened)[0] == "dog_5" and names(opened)[-1] == "dog_4"
    opened.key("6")  # PA-MPVPE: less is better
    assert names(opened)[0] == "dog_0"
    opened.key("w")
    assert names(opened)[0] == "dog_5"
    heading = "document.querySelector('#head th:nth-child(6)')"
    assert opened.run(f"{heading}.getAttribute('aria-sort')") == "descending"
    opened.run(f"{heading}.querySelector('button').click()")
    assert (
        opened.run(f"{heading}.getAttribute('aria-sort')") == "ascending"
        and names(opened)[0] == "dog_0"
    )
    opened.key("1")
    assert names(opened)[1:] == sorted(names(opened)[1:])
    opened.run("search.value = 'G_4'; search.dispatchEvent(new Event('input'))")
    assert names(opened) == ["dog_4"]


def test_keys_and_rows_choose_an_image(opened, page):
    name, place = (
        "document.getElementById('name').textContent",
        "document.getElementById('place').textContent",
    )
    opened.key("ArrowRight")
    assert opened.run(name) == "dog_4" and opened.run(place) == "2 of 6"
    opened.key("ArrowLeft")
    opened.key("ArrowLeft")
    assert opened.run(name) == "dog_0" and opened.run(place) == "6 of 6"
    opened.run("[...document.querySelectorAll('#rows tr')].at(-3).click()")
    assert opened.run(name) == EVIL and opened.run("window.ran") is None
    opened.wait("document.getElementById('strip-image').naturalWidth")  # its file is found
    assert opened.run("document.querySelectorAll('[aria-current]').length") == 1
    opened.run("[...document.querySelectorAll('#rows tr')].at(2).click()")
    assert opened.run(name) == "dog_3" and opened.run("document.getElementById('stage').hidden")
    assert opened.errors == []


def check_turning(browser: Browser, folder: Path) -> None:
    """A long body, red and blue, seen from its red end: it follows the mouse and goes back."""
    left, top, width_all, height_all = box(browser)
    start = (left + width_all / 4, top + height_all / 2)

    def coarse(name):
        return stage(browser, folder / f"{name}.png")[:, : width_all // 2 - 10]

    def width(pixels):
        return body(pixels).any(0).sum()

    before = coarse("before")
    assert (coarse("again") == before).all()
    assert width(before) == pytest.approx(0.8 * body(before).any(1).sum(), rel=0.04)
    assert red(before).sum() > 0.97 * body(before).sum()  # seen as the camera sees it
    browser.drag(start, (start[0] + 120, start[1]))
    turned = coarse("turned")
    assert width(turned) > 1.5 * width(before) > 60
    assert np.nonzero(red(turned))[1].mean() > np.nonzero(body(turned))[1].mean() + 20
    browser.key("0")
    assert np.abs(coarse("again") - before).mean() < 0.5
    browser.drag(start, (start[0], start[1] + 80))
    from_above = coarse("from_above")
    assert np.nonzero(red(from_above))[0].mean() > np.nonzero(body(from_above))[0].mean() + 20
    browser.key("0")
    browser.key("ArrowRight", shift=True)
    assert width(coarse("key")) > 1.01 * width(before)
    browser.key("0")
    browser.key("+")
    assert width(coarse("near")) > 1.05 * width(before)
    browser.key("c")
    assert not red(stage(browser, folder / "plain.png")).any()
    browser.key("t")
    drawn = browser.run("Number(canvas.dataset.drawn)")
    browser.wait(f"Number(canvas.dataset.drawn) > {drawn + 3}")
    browser.key("t")
    assert browser.errors == []


def test_the_meshes_turn(opened, screenshots):
    check_turning(opened, screenshots)


def test_meshes_at_other_depths_are_drawn_as_large(browser, tmp_path, screenshots):
    verts, faces = ball()
    colors = np.tile((0.9, 0.1, 0.1), (len(verts), 1))
    drawn = []
    for depth in (0, 6):
        meshes = {"coarse": verts, "refined": verts + [0.5, 0, depth]}
        image = PageImage("a", None, {"iou": 0.5}, meshes, dict.fromkeys(meshes, colors))
        browser.resize(1440, 900)
        browser.open(write_page(tmp_path / str(depth), "Depths", [image], faces).as_uri())
        browser.wait("document.getElementById('canvas').dataset.drawn")
        pixels = body(stage(browser, screenshots / f"depth_{depth}.png"))
        half = pixels.shape[1] // 2
        drawn.append((pixels[:, : half - 10].sum(), pixels[:, half + 10 :].sum()))
    assert drawn[0] == pytest.approx(drawn[1], rel=0.02) and min(drawn[0]) > 1000
    assert drawn[1][0] == pytest.approx(drawn[1][1], rel=0.02)


def test_the_meshes_turn_without_webgl(page, tmp_path, screenshots):
    browser = Browser(tmp_path, "--disable-3d-apis")
    try:
        browser.resize(1440, 900)
        browser.open(page.as_uri())
        browser.wait("document.getElementById('canvas').dataset.drawn")
        assert browser.run("viewer.kind") == "painted"
        check_turning(browser, tmp_path)
        browser.screenshot(screenshots / "painted.png")
    finally:
        browser.close()


def test_it_fits_a_phone(opened, screenshots):
    opened.resize(390, 844, phone=True, ratio=2)
    opened.wait("canvas.hasAttribute('data-stacked')")
    assert opened.run("document.documentElement.scrollWidth") <= 390
    opened.screenshot(screenshots / "phone.png")
    opened.run("document.querySelector('.list').scrollIntoView({behavior: 'instant'})")
    opened.screenshot(screenshots / "phone_table.png")


def test_a_page_without_scores_works(browser, tmp_path):
    verts, faces = ball()
    images = [PageImage(name, meshes={"coarse": verts}) for name in ("b", "a")]
    page = write_page(tmp_path, "Photographs", images, faces)
    browser.resize(1200, 800)
    browser.open(page.as_uri())
    browser.wait("document.getElementById('canvas').dataset.drawn")
    assert names(browser) == ["a", "b"] and browser.errors == []
    assert browser.run("document.getElementById('order').hidden")
    (tmp_path / "page" / "mesh_0000.js").unlink()
    browser.key("ArrowRight")
    assert "missing" in browser.wait(
        "document.getElementById('message').textContent.match(/missing/)?.[0]"
    )
