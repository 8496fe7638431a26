"""Where the tests find their data: recorded arrays in tests/data or in a folder `shared`."""

import os
from pathlib import Path

# Before torch is imported. Some tests fork, which OpenMP's threads do not survive.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def freed_memory_goes_back():
    """Runs in this process leave its allocator alone: other tests measure what memory grows."""
    from engine import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "keep_freed_memory", lambda: False)
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--many_processes", action="store_true", help="slow tests of several processes too"
    )


def _shared_folder() -> Path | None:
    folder = Path(os.environ.get("COARSE_TO_FINE_SHARED", ROOT.parent / "shared"))
    return folder if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded arrays and sample files; tests that need it skip without it."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip(
            "no ../shared folder with recorded arrays and sample files (set COARSE_TO_FINE_SHARED)"
        )
    return folder


@pytest.fixture(scope="session")
def synthetic_body(tmp_path_factory) -> Path:
    """A data folder with the synthetic body, priors and mesh hierarchy; other sizes than SMAL's."""
    from synthetic.body import write_body

    folder = tmp_path_factory.mktemp("body")
    write_body(folder)
    return folder


@pytest.fixture(scope="session")
def golden():
    """golden(name) reads `<name>.npz` from tests/data or the shared folder as a dict."""

    def read(name: str) -> dict:
        folder = _shared_folder()
        candidates = [ROOT / "tests" / "data"] + ([folder / "golden"] if folder else [])
        for candidate in candidates:
            path = candidate / f"{name}.npz"
            if path.exists():
                with np.load(path) as arrays:
                    return dict(arrays)
        pytest.skip(f"{name}.npz is neither in tests/data nor in ../shared/golden")

    return read


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from synthetic.writer import make_data

    folder = tmp_path_factory.mktemp("synthetic")
    make_data(folder, num_images=24, seed=3, num_workers=1)
    for split, part in (("train", range(18)), ("val", range(18, 20)), ("test", range(20, 24))):
        np.save(
            folder / "StanfordExtra_v12" / f"{split}_stanford_StanfordExtra_v12.npy",
            np.arange(24)[part.start : part.stop],
        )
    return folder


@pytest.fixture(scope="session")
def runs(data, tmp_path_factory):
    """The three stages with the README's options; 18 training images: batches of 8, 8 and 2."""
    import main
    import main_meshgraph
    from tests.commands import SMALL

    out = tmp_path_factory.mktemp("runs")
    common = ["--data_dir", str(data), "--num_works", "0", "--device", "cpu"]
    main.main(
        [
            *common,
            *SMALL,
            "--batch_size",
            "8",
            "--nEpochs",
            "2",
            "--output_dir",
            str(out / "stage1"),
        ]
    )
    stage2 = "--nEpochs 1 --local_feat --num_channels 32 --batch_size 8 --freezecoarse --gpu_ids 0"
    start = ["--pretrained", str(out / "stage1" / "checkpoint.pth.tar")]
    main_meshgraph.main([*common, "--output_dir", str(out / "stage2"), *stage2.split(), *start])
    main_meshgraph.main(
        [
            *common,
            "--output_dir",
            str(out / "stage3"),
            "--nEpochs",
            "1",
            "--lr",
            "1e-5",
            "--local_feat",
            "--batch_size",
            "8",
        ]
        + "--w_arap 10000 --w_dice 1000 --w_dice_refine 100 --gpu_ids 0".split()
        + ["--w_pose_limit_prior", "5000"]
        + ["--resume", str(out / "stage2" / "checkpoint.pth.tar")]
    )
    return out
