"""The C library's heap: how many there are, and giving back what is no longer used. It decides nothing."""

import ctypes

_ARENA_MAX = -8  # malloc.h

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Return free memory of the heap to the kernel (malloc_trim(3)); does nothing with a libc that has no such call."""
    try:
        function = _libc["malloc_trim"]
    except AttributeError:  # musl
        return
    function.argtypes = (ctypes.c_size_t,)
    function(0)


def share() -> None:
    """Have all threads use one heap (mallopt(3), M_ARENA_MAX); call it before the first thread is started.

    glibc gives each thread a heap of its own, up to eight for each CPU, and never gives back the end of one. Does
    nothing with a libc that has no such call.
    """
    try:
        function = _libc["mallopt"]
    except AttributeError:  # musl
        return
    function.argtypes = (ctypes.c_int, ctypes.c_int)
    function(_ARENA_MAX, 1)
