"""Where the tests find their data: recorded arrays in tests/data or in a `shared` folder beside the repository."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _shared_folder() -> Path | None:
    folder = Path(os.environ.get("COARSE_TO_FINE_SHARED", ROOT.parent / "shared"))
    return folder if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with recorded arrays and sample files; tests that need it skip where it is missing."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip(
            "no ../shared folder with recorded arrays and sample files (set COARSE_TO_FINE_SHARED)"
        )
    return folder


@pytest.fixture(scope="session")
def made_up_body(tmp_path_factory) -> Path:
    """A data folder with the made-up body, its priors and its mesh hierarchy; other sizes than SMAL's."""
    from synthetic.body import write_body

    folder = tmp_path_factory.mktemp("body")
    write_body(folder)
    return folder


@pytest.fixture(scope="session")
def golden():
    """golden(name) reads `<name>.npz` as a dict of arrays, from tests/data or from the shared folder."""

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
