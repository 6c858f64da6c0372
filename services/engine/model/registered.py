"""Memory of ours that a GPU copies from and to by itself, at what the bus can do: CUDA knows that it stays
where it is. Other memory goes through a buffer of the driver's, with this processor's help.

ONNX Runtime's Python has no call for it, so the CUDA runtime that it has loaded is asked. Where that refuses,
all works as well with memory as it is.
"""

import ctypes
import logging
import mmap
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.columns import size
from millrace.convert.runtime import ort

log = logging.getLogger("millrace.engine")

Array = npt.NDArray[Any]


class Rooms:
    """For arrays like one. A room is free again when nobody has its array, or a view of it, any more; while
    none is, an array is of memory like any other."""

    def __init__(self, count: int, like: Array, register: Callable[[int, int], Callable[[], Any]] | None):
        """`register`: from an address on, so many bytes; what it returns undoes it. It may raise OSError."""
        self._like = like
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, max(1, count * like.nbytes), flags=flags)
        self._free = list(reversed(range(count)))
        if hasattr(mmap, "MADV_DONTFORK"):
            # A child's copy would part the pages that the GPU knows from those that are seen here.
            self._memory.madvise(mmap.MADV_DONTFORK)
        if register and count:
            room = size(count * like.nbytes)
            try:
                undo = register(np.frombuffer(self._memory, np.uint8).ctypes.data, len(self._memory))
            except OSError as error:
                log.warning("%s for prefixes are not registered with CUDA, copies are slow: %s", room, error)
            else:
                log.info("%s for prefixes are registered with CUDA", room)
                # It has the memory in hand, which is there until then. A process that ends needs none of it.
                weakref.finalize(self, _undone, undo, self._memory).atexit = False

    def array(self) -> Array:
        """Whatever was there."""
        if not self._free:
            return np.empty_like(self._like)
        place = self._free.pop()
        like = self._like
        line = np.frombuffer(self._memory, like.dtype, like.size, place * like.nbytes)
        weakref.finalize(line, self._left, place).atexit = False  # all views of it have it as their base
        return line.reshape(like.shape)

    def _left(self, place: int) -> None:
        self._free.append(place)


def _undone(undo: Callable[[], Any], memory: mmap.mmap) -> None:
    undo()


def register(device: int, start: int, count: int, runtime: Any = None) -> Callable[[], Any]:
    """With this device's CUDA. `runtime`: its library, else the one that this process has. OSError says what
    it said."""
    if runtime is None:
        name = f"libcudart.so.{str(getattr(ort, 'cuda_version', '')).partition('.')[0] or 13}"
        try:
            runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        except OSError as error:
            raise OSError(f"{name} is not in this process: {error}") from None
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    at = ctypes.c_void_p(start)
    refused = runtime.cudaSetDevice(ctypes.c_int(device)) or runtime.cudaHostRegister(
        at, ctypes.c_size_t(count), ctypes.c_uint(0)
    )
    if refused:
        said = runtime.cudaGetErrorString(ctypes.c_int(refused)).decode()
        runtime.cudaGetLastError()  # it would be taken for that of the next kernel
        raise OSError(f"cudaHostRegister: {said}")
    return partial(runtime.cudaHostUnregister, at)
