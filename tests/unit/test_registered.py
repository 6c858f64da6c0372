"""Memory that CUDA knows: handed out once, as long as it is in use, and undone before it is gone."""

import ctypes
import gc
from functools import partial
from typing import Any

import numpy as np
import pytest

from services.engine.model.registered import Rooms, register

LIKE = np.zeros((3, 5), np.float16)
REFUSED = 304


class Cuda:
    """A CUDA runtime as ctypes sees one, with the types of its arguments; it takes down what it is told."""

    def __init__(self, said: int = 0):
        self.told: list[tuple[object, ...]] = []
        self.seen = b""
        word, address = ctypes.c_int, ctypes.c_void_p
        self.cudaSetDevice = self._call("device", 0, word)
        self.cudaHostRegister = self._call("register", said, address, ctypes.c_size_t, ctypes.c_uint)
        self.cudaGetLastError = self._call("cleared", said)
        self.cudaHostUnregister = ctypes.CFUNCTYPE(word, address)(self._unregister)
        self._said = ctypes.create_string_buffer(b"no room to pin")
        self.cudaGetErrorString = ctypes.CFUNCTYPE(address, word)(lambda _: ctypes.addressof(self._said))

    def _call(self, name: str, result: int, *kinds: type) -> Any:
        def take(*arguments: object) -> int:
            self.told.append((name, *arguments))
            return result

        return ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(take)

    def _unregister(self, start: int) -> int:
        self.seen = ctypes.string_at(start, LIKE.nbytes)  # it must be there still
        self.told.append(("unregister", start))
        return 0


def test_a_room_is_free_when_nobody_has_it_any_more() -> None:
    """Not even a view of it; and where none is free, there is other memory."""
    rooms = Rooms(2, LIKE, None)
    first, second, third = (rooms.array() for _ in range(3))
    for number, array in enumerate((first, second, third), 1):
        array[:] = number
    at = first.ctypes.data
    view = first.reshape(-1).view(np.int16)[3:]
    del first
    fourth = rooms.array()
    fourth[:] = 4
    apart = [fourth.ctypes.data != at, (view == np.float16(1).view(np.int16)).all()]
    del view
    fifth = rooms.array()

    assert [True, True] == apart
    assert (fifth.ctypes.data, fifth.shape, fifth.dtype) == (at, LIKE.shape, LIKE.dtype)
    assert (second == 2).all() and (third == 3).all() and (fourth == 4).all()


def test_cuda_knows_it_until_the_last_array_is_gone() -> None:
    cuda = Cuda()
    rooms = Rooms(4, LIKE, partial(register, 1, runtime=cuda))
    array = rooms.array()
    array[:] = 7
    start = array.ctypes.data
    view = array[1]
    del rooms, array
    gc.collect()
    before = list(cuda.told)
    del view
    gc.collect()

    assert [("device", 1), ("register", start, 4 * LIKE.nbytes, 0)] == before
    assert [("unregister", start)] == cuda.told[2:]
    assert np.full_like(LIKE, 7).tobytes() == cuda.seen


def test_where_cuda_refuses_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """The memory is used as it is, and ONNX Runtime does not find the error later."""
    cuda = Cuda(REFUSED)
    array = Rooms(4, LIKE, partial(register, 0, runtime=cuda)).array()
    array[:] = 7
    del array
    gc.collect()

    assert ["device", "register", "cleared"] == [told[0] for told in cuda.told]
    (line,) = caplog.messages
    assert "120 B for prefixes" in line and "cudaHostRegister: no room to pin" in line


def test_without_the_runtime_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Rooms(1, LIKE, partial(register, 0)).array()[:] = 7

    (line,) = caplog.messages
    assert "libcudart.so." in line and "not in this process" in line
