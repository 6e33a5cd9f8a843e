from __future__ import annotations

import numpy as np

from stn_infer.data.buffers import Buffers

UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
LARGE = (512, 1024)


def test_memory_that_was_given_back_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.take(LARGE, UINT8)
    first[...] = 7
    buffers.give_back(first[:100].reshape(10, 10, 1024).transpose(2, 0, 1))  # any view of it
    again = buffers.take((128, 1024), FLOAT32)
    assert np.shares_memory(first, again)
    assert (again.shape, again.dtype, again.flags.c_contiguous) == ((128, 1024), FLOAT32, True)


def test_memory_in_use_is_not_handed_out() -> None:
    buffers = Buffers()
    taken = [buffers.take(LARGE, UINT8) for _ in range(3)]
    buffers.give_back(taken[0])
    buffers.give_back(taken[0])
    taken += [buffers.take(LARGE, UINT8) for _ in range(2)]
    assert [np.shares_memory(taken[i], taken[j]) for i, j in ((0, 3), (3, 4), (1, 3), (2, 4))] == [
        True,
        False,
        False,
        False,
    ]


def test_arrays_of_others_and_small_ones_are_left_alone() -> None:
    buffers = Buffers()
    for array in (np.zeros(LARGE, np.uint8), buffers.take((3,), FLOAT32), np.frombuffer(bytes(1 << 20), np.uint8)):
        buffers.give_back(array)
    taken = buffers.take(LARGE, UINT8)
    taken[...] = 1
    assert buffers._free == []


def test_much_larger_memory_is_not_used_for_a_small_array() -> None:
    buffers = Buffers()
    large = buffers.take((1 << 22,), UINT8)
    buffers.give_back(large)
    assert not np.shares_memory(large, buffers.take((1 << 20,), UINT8))
