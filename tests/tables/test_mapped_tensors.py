"""Mapped arrays are those that safetensors wrote, and a file that is not whole or lies about itself is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors.numpy import save

from multifacet.tables.mapped_tensors import map_tensors

ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.sampled_from(["u1", "i4", "i8", "f2", "f4"]).flatmap(
        lambda dtype: nps.arrays(dtype, nps.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
    ),
    min_size=1,
    max_size=4,
)


@given(arrays=ARRAYS)
def test_arrays_are_those_that_were_saved(arrays, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(save(arrays))
    mapped = map_tensors(path)
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


@given(
    place=st.integers(0, 200),
    value=st.integers(0, 255),
    length=st.integers(0, 400),
)
def test_a_changed_or_cut_header_never_leads_out_of_the_file(place, value, length, tmp_path_factory):
    content = bytearray(save({"keys": np.arange(9), "rows": np.arange(5, dtype=np.int32)}))
    content[min(place, len(content) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(content[:length])
    try:
        mapped = map_tensors(path)
    except ValueError as error:
        assert "is not a safetensors file" in str(error)  # noqa: PT017
        return
    assert sum(array.nbytes for array in mapped.values()) <= length
    for array in mapped.values():
        array.sum()  # every byte can be read


def test_what_is_written_to_an_array_stays_in_memory(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(save({"rows": np.arange(3)}))
    map_tensors(path)["rows"][0] = 7
    assert map_tensors(path)["rows"].tolist() == [0, 1, 2]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        map_tensors(tmp_path / "nowhere")


def test_neither_a_lookup_server_nor_a_client_imports_torch():
    program = "import serving.lookup, serving.client, sys; print(sorted({'torch', 'fbgemm_gpu'} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"
