"""The C library's heap: giving back what is no longer used. One function; it decides nothing."""

import ctypes

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Return free memory of the heap to the kernel (malloc_trim(3)); does nothing with a libc that has no such call."""
    try:
        function = _libc["malloc_trim"]
    except AttributeError:  # musl
        return
    function.argtypes = (ctypes.c_size_t,)
    function(0)
