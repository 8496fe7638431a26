"""Reading body files safely: what is admitted, what is refused, what damage is survived."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from smal_model import SMAL
from smal_model.safe_pickle import UnsafeFileError, load_pickle
from smal_model.tables import load_npz, load_table
from util.errors import InputError


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_pickle_that_calls_os_system_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"v_template": Evil()}, protocol=2))
    with pytest.raises(UnsafeFileError, match=r"posix.system|nt.system"):
        load_pickle(tmp_path / "evil.pkl")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "exec", "__import__"])
def test_builtins_that_run_code_are_refused(tmp_path, name):
    data = b"cbuiltins\n" + name.encode() + b"\n(S'1+1'\ntR."
    (tmp_path / "evil.pkl").write_bytes(data)
    with pytest.raises(UnsafeFileError, match=f"builtins.{name}"):
        load_pickle(tmp_path / "evil.pkl")


def test_pickle_hidden_in_an_npz_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", A=np.array([Evil()], dtype=object))
    with pytest.raises(UnsafeFileError, match="system"):
        load_npz(tmp_path / "evil.npz")


def _chumpy_pickle(value, protocol):
    """A chumpy array as chumpy pickles it: an object of chumpy.ch.Ch whose value is `x`."""
    module = types.ModuleType("chumpy.ch")
    module.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    sys.modules.update({"chumpy": types.ModuleType("chumpy"), "chumpy.ch": module})
    try:
        array = module.Ch()
        array.__dict__.update(x=value, _dirty_vars=set(), _itr=None)
        return pickle.dumps({"shapedirs": array}, protocol=protocol)
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_chumpy_arrays_are_read_without_chumpy(tmp_path, protocol):
    value = np.arange(12.0).reshape(3, 4)
    (tmp_path / "a.pkl").write_bytes(_chumpy_pickle(value, protocol))
    np.testing.assert_array_equal(load_pickle(tmp_path / "a.pkl")["shapedirs"], value)


def test_text_pickle_with_windows_line_ends_is_read(tmp_path):
    value = {"name": np.arange(300.0), "m": scipy.sparse.csc_matrix(np.eye(4))}
    data = pickle.dumps(value, protocol=0)
    (tmp_path / "lf.pkl").write_bytes(data)
    (tmp_path / "crlf.pkl").write_bytes(data.replace(b"\n", b"\r\n"))
    good, mended = load_pickle(tmp_path / "lf.pkl"), load_pickle(tmp_path / "crlf.pkl")
    np.testing.assert_array_equal(mended["name"], value["name"])
    np.testing.assert_array_equal(mended["m"].toarray(), good["m"].toarray())


@pytest.mark.parametrize("module", ["scipy.sparse.csc", "scipy.sparse._csc"])
def test_old_and_new_scipy_and_numpy_paths(tmp_path, module):
    data = pickle.dumps(scipy.sparse.csc_matrix(np.diag([1.0, 2, 3])), protocol=2)
    data = data.replace(b"scipy.sparse._csc", module.encode())
    for numpy_path in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        renamed = data.replace(b"numpy._core.multiarray", numpy_path)
        (tmp_path / "m.pkl").write_bytes(renamed)
        np.testing.assert_array_equal(
            load_pickle(tmp_path / "m.pkl").toarray(), np.diag([1.0, 2, 3])
        )


def test_truncated_pickle_says_what_to_do(tmp_path):
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"a": np.arange(1000)})[:500])
    with pytest.raises(ValueError, match="half.pkl is not a readable pickle.*download it again"):
        load_pickle(tmp_path / "half.pkl")


def test_npz_is_read_where_there_is_no_pickle(tmp_path):
    np.savez(tmp_path / "table.npz", a=np.arange(3))
    np.testing.assert_array_equal(load_table(tmp_path, "table")["a"], np.arange(3))


def test_damaged_npz_is_named_wherever_the_damage_is(tmp_path):
    """Compressed as the published hierarchy is, each hundredth byte turned: whole or refused."""
    numbers = np.random.default_rng(0).integers(0, 50, 2000)
    np.savez_compressed(tmp_path / "a.npz", numbers=numbers)
    data = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for position in range(0, len(data), 100):
        (tmp_path / "b.npz").write_bytes(
            data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]
        )
        try:
            assert np.array_equal(load_npz(tmp_path / "b.npz").get("numbers"), numbers)
        except (ValueError, OSError) as error:
            assert "b.npz is not a readable .npz file" in str(error)
            refused += 1
    assert refused > 10


def test_missing_body_names_file_source_and_way_out(tmp_path):
    with pytest.raises(InputError, match=r"my_smpl_00781_4_all.*smal.is.tue.mpg.de.*embedded body"):
        SMAL(tmp_path)


def test_sample_files_hold_what_the_layer_needs(shared):
    family = load_table(shared / "samples" / "smal", "my_smpl_data_00781_4_all")
    assert len(family["cluster_means"][1]) == 41
    np.testing.assert_allclose(
        family["cluster_cov"][1], np.transpose(family["cluster_cov"][1]), atol=1e-9
    )
    symmetry = load_table(shared / "samples" / "smal", "symIdx")["symIdx"]
    np.testing.assert_array_equal(
        symmetry[symmetry], np.arange(len(symmetry))
    )  # a mirror image's mirror image
