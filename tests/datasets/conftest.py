import pytest

from .small_set import make_entry, write_set


@pytest.fixture
def small_set(tmp_path):
    write_set(tmp_path, [make_entry(i) for i in range(4)], {"train": [2, 0, 3], "test": [1]})
    return tmp_path
