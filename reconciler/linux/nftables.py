"""nftables through libnftables, with JSON both ways, and the generation number of the kernel's rule set.

The library is loaded when the first context is made, so that a host without it can say so. One command buffer is one
transaction: the kernel takes all of it or nothing. It renders nothing and decides nothing. A context belongs to the
network namespace in which it was made and serves one thread at a time.
"""

import ctypes
import errno
import json
import os
import socket
import struct

from reconciler.linux import netlink

LIBRARY = "libnftables.so.1"

_OUTPUT_STATELESS = 1 << 2  # NFT_CTX_OUTPUT_*: no counter values, no expiry
_OUTPUT_JSON = 1 << 4
_OUTPUT_NUMERIC_PROTO = 1 << 7
_OUTPUT_NUMERIC_PRIO = 1 << 8
_OUTPUT_NUMERIC_TIME = 1 << 10

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_GENERATION = 16  # NFT_MSG_GETGEN
_GENERATION_ID = 1  # NFTA_GEN_ID
_NFGENMSG = struct.Struct("=BBH")

# What the library says instead of an errno: it returns -1 and text only.
_REASONS = (
    (errno.EPERM, "Operation not permitted"),
    (errno.ENOENT, "No such file or directory"),
    (errno.EEXIST, "File exists"),
    (errno.EBUSY, "Device or resource busy"),
    (errno.ENOMEM, "Cannot allocate memory"),
    (errno.EOPNOTSUPP, "Operation not supported"),
    (errno.EAFNOSUPPORT, "Address family not supported"),
    (errno.EAGAIN, "Resource temporarily unavailable"),
)


def generation(sock: netlink.Socket) -> int:
    """The number that every change of any table in this network namespace increases.

    EPERM without CAP_NET_ADMIN; EINVAL, EPROTONOSUPPORT or EOPNOTSUPP where the kernel has no nf_tables.
    """
    answer = sock.get(
        netlink.message(_SUBSYSTEM | _GET_GENERATION, 0, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))
    )
    return int.from_bytes(netlink.attributes(answer, _NFGENMSG.size)[_GENERATION_ID], "big")


_libraries: list[ctypes.CDLL] = []  # the one loaded library, or none yet


def _load() -> ctypes.CDLL:
    if _libraries:
        return _libraries[0]
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise OSError(errno.ELIBACC, f"{os.strerror(errno.ELIBACC)}: {error}", LIBRARY) from None
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_int
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    _libraries.append(library)
    return library


class Context:
    """A libnftables context; OSError(ELIBACC) where the library is missing.

    Ask `generation` first: on a kernel without netfilter netlink the library ends the whole process (mnl.c).
    """

    __slots__ = ("_context", "_library")

    def __init__(self) -> None:
        self._context: int | None = None
        self._library = _load()
        context = self._library.nft_ctx_new(0)
        if not context:
            raise OSError(errno.ENOMEM, "nft_ctx_new")
        self._context = context
        self._library.nft_ctx_output_set_flags(
            context,
            _OUTPUT_JSON
            | _OUTPUT_STATELESS
            | _OUTPUT_NUMERIC_PROTO
            | _OUTPUT_NUMERIC_PRIO
            | _OUTPUT_NUMERIC_TIME,
        )
        if self._library.nft_ctx_buffer_output(context) or self._library.nft_ctx_buffer_error(context):
            self.close()
            raise OSError(errno.ENOMEM, "nft_ctx_buffer_output")

    def run(self, commands: list[dict[str, object]]) -> list[dict[str, object]]:
        """Run the commands as one transaction and return the objects they list; OSError with nft's own text."""
        if self._context is None:
            raise OSError(errno.EBADF, "nftables: the context is closed")
        text = json.dumps({"nftables": commands}, separators=(",", ":")).encode()
        status = self._library.nft_run_cmd_from_buffer(self._context, text)
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        said: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            reason = " ".join(said.decode(errors="replace").split()) or "no reason given"
            number = next((number for number, words in _REASONS if words in reason), errno.EINVAL)
            raise OSError(number, f"nftables: {reason}")
        if not output.strip():
            return []
        listed: list[dict[str, object]] = json.loads(output)["nftables"]
        return listed

    def close(self) -> None:
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def __del__(self) -> None:
        self.close()
