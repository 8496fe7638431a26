"""A body of four vertices with all its files, and readers that use each of them to the end."""

import contextlib
import io
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from smal_model import SMAL, MeshHierarchy, priors
from smal_model.body_files import FAMILY_FILE, MODEL_FILE, SYMMETRY_FILE

V, J, K = 4, 35, 20
HIERARCHY = "mesh_down_sampling_4.npz"
POSE_PRIOR = f"priors/{priors.POSE_PRIOR_FILES['smal']}"


@contextlib.contextmanager
def _chumpy():
    """A stand-in for the chumpy package, so that its arrays can be pickled by name."""
    module = types.ModuleType("chumpy.ch")
    module.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    sys.modules.update({"chumpy": types.ModuleType("chumpy"), "chumpy.ch": module})
    try:
        yield module.Ch
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]


def chumpy_pickle(values: dict, names=(), protocol: int = 2) -> bytes:
    """Pickles a dict in which the arrays called `names` are chumpy arrays."""
    with _chumpy() as make:
        values = dict(values)
        for name in names:
            array = make()
            array.__dict__.update(x=values[name], _dirty_vars=set(), _itr=None)
            values[name] = array
        return pickle.dumps(values, protocol=protocol)


def tables() -> dict[str, dict]:
    """The arrays of each file, by the file's stem in a data folder."""
    rng = np.random.default_rng(0)
    parents = np.maximum(np.arange(J) - 1, 0).astype(np.uint32)
    parents[0] = 2**32 - 1
    weights = rng.uniform(size=(V, J))
    model = {
        "v_template": rng.normal(size=(V, 3)),
        "f": np.array([[0, 1, 2], [0, 2, 3]], np.uint32),
        "shapedirs": rng.normal(size=(V, 3, K)),
        "posedirs": np.zeros((V, 3, 9 * (J - 1))),
        "J_regressor": scipy.sparse.random(J, V, 0.5, "csc", random_state=rng),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.stack([parents, np.arange(J, dtype=np.uint32)]),
        "mirror_plane_vertices": np.array([0, 1]),
        "landmark_vertices": np.arange(6) % V,
    }
    family = {"cluster_means": np.zeros((2, K)), "cluster_cov": [np.eye(K), 2 * np.eye(K)]}
    size = 3 * J
    return {
        f"smal/{MODEL_FILE}": model,
        f"smal/{FAMILY_FILE}": family,
        f"smal/{SYMMETRY_FILE}": {SYMMETRY_FILE: np.array([0, 1, 3, 2])},
        POSE_PRIOR: {"mean_pose": np.zeros(size), "pic": np.eye(size)},
        "priors/unity_betas": {"mean": np.zeros(27, np.float32), "cov": np.eye(27)},
    }


def matrices() -> dict[str, list]:
    """Three levels of four, two and one vertices."""
    a = [scipy.sparse.csr_matrix(np.ones((n, n)) - np.eye(n)) for n in (4, 2, 1)]
    a[-1] = scipy.sparse.csr_matrix(np.ones((1, 1)))
    d = [scipy.sparse.csr_matrix(np.eye(2, 4)), scipy.sparse.csr_matrix(np.eye(1, 2))]
    return {"A": a, "D": d, "U": [m.T.tocsc() for m in d]}


def npz(table: dict, compressed: bool = False) -> bytes:
    """An `.npz` file in memory; lists become arrays of objects, as in the published hierarchy."""
    arrays = {}
    for key, value in table.items():
        if isinstance(value, list):
            arrays[key] = np.empty(len(value), object)
            arrays[key][:] = value
        else:
            arrays[key] = value.toarray() if scipy.sparse.issparse(value) else value
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def saved_hierarchy(folder: Path) -> bytes:
    """The bytes of what `MeshHierarchy.save` writes."""
    MeshHierarchy(matrices()).save(folder / "saved.npz")
    return (folder / "saved.npz").read_bytes()


def write_all(folder: Path) -> None:
    """Writes every file, as pickles, and the hierarchy as it is published."""
    for name in ("smal", "priors"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, table in tables().items():
        (folder / f"{stem}.pkl").write_bytes(pickle.dumps(table, protocol=2))
    (folder / HIERARCHY).write_bytes(npz(matrices()))


def use_body(folder: Path) -> None:
    """Reads a body and poses it."""
    torch.set_num_threads(1)
    smal = SMAL(folder / "smal")
    out = smal(torch.zeros(1, K), torch.zeros(1, 3 * J))
    if not out.verts.isfinite().all():
        raise ArithmeticError("the body is not finite")


def use_family(folder: Path) -> None:
    use_body(folder)
    priors.shape_prior("smal", SMAL(folder / "smal"), folder)


def use_pose_prior(folder: Path) -> None:
    torch.set_num_threads(1)
    loss = priors.pose_prior("smal", folder)(torch.ones(2, 3 * J))
    if not loss.isfinite():
        raise ArithmeticError("the prior is not finite")


def use_unity_betas(folder: Path) -> None:
    torch.set_num_threads(1)
    loss = priors.shape_prior("unity", None, folder)(torch.ones(2, 26))
    if not loss.isfinite():
        raise ArithmeticError("the prior is not finite")


def use_hierarchy(folder: Path) -> None:
    """Reads a hierarchy and goes down and up all its levels."""
    torch.set_num_threads(1)
    hierarchy = MeshHierarchy.load(folder / HIERARCHY)
    x = torch.ones(1, hierarchy.sizes[0], 2)
    levels = range(len(hierarchy.sizes) - 1)
    for level in levels:
        x = hierarchy.down(hierarchy.neighbours(x, level), level)
    for level in reversed(levels):
        x = hierarchy.up(x, level)
    if not x.isfinite().all():
        raise ArithmeticError("the hierarchy is not finite")
