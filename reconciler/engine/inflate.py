"""Unpacks the compression of a layer, chunk by chunk, however the bytes arrive.

isal inflates gzip at twice zlib's speed and without the interpreter lock. zstd comes from the standard library (3.14)
or backports.zstd, and a layer that needs it is refused by name where neither is there. Pure but for that import.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from isal import isal_zlib

from reconciler.engine.limits import Limits
from reconciler.engine.tarfields import InvalidLayerError, LimitError
from reconciler.errors import UnsupportedError

_IsalError: Final[type[Exception]] = vars(isal_zlib)["error"]  # typed as an instance in its stub
_OUT: Final = 256 << 10  # small enough to stay in the processor's cache until it is hashed and written
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"  # behind a first byte of 0x50 to 0x5f
# 8 MiB, what RFC 8878 (3.1.1.1.2) recommends decoders to support at least; 2 TiB is legal. It is memory, two layers
# are unpacked at a time, and a pull may take 80 MiB. zstd itself has larger ones from level 20 on, and with --long.
_ZSTD_WINDOW_LOG: Final = 23


class _Frame(Protocol):
    """One gzip member or zstd frame being unpacked."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    @property
    def done(self) -> bool: ...
    @property
    def rest(self) -> bytes: ...


class _Gzip:
    """A gzip member; its CRC and length are checked by isal."""

    def __init__(self) -> None:
        self._inflate = isal_zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            out = self._inflate.decompress(data, _OUT)
            while out:
                yield out
                if self._inflate.eof:
                    return
                out = self._inflate.decompress(self._inflate.unconsumed_tail, _OUT)
        except _IsalError as error:
            raise InvalidLayerError(f"gzip: {error}") from error

    @property
    def done(self) -> bool:
        return bool(self._inflate.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._inflate.unused_data)


def _zstd_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnsupportedError(
        "layer: packed with zstd, which this Python can't unpack",
        hint="install the Python package backports.zstd, or push the image with gzip layers",
    )


class _Zstd:
    """A zstd frame, or a skippable one. The window is limited: an attacker chooses it, and it is memory."""

    def __init__(self, module: Any) -> None:
        self._module = module
        parameter = module.DecompressionParameter.window_log_max
        self._inflate = module.ZstdDecompressor(options={parameter: _ZSTD_WINDOW_LOG})

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            out = self._inflate.decompress(data, _OUT)
            while out:
                yield out
                if self._inflate.eof or self._inflate.needs_input:
                    return
                out = self._inflate.decompress(b"", _OUT)
        except self._module.ZstdError as error:
            hint = ""
            if "too much memory" in str(error):
                hint = "its window is larger than 8 MiB: pack it at a level below 20, without --long"
            raise InvalidLayerError(f"zstd: {error}", hint=hint) from error

    @property
    def done(self) -> bool:
        return bool(self._inflate.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._inflate.unused_data)


def _frames(chunks: Iterable[bytes], start: Callable[[], _Frame], *, padding: bool) -> Iterator[bytes]:
    """Unpack one frame after the other; an unfinished one, or anything else behind the last, is refused.

    With `padding`, zeros may follow the last: gzip allows them, for tapes (gzip(1), "CAVEATS").
    """
    frame = start()
    inside = True
    for chunk in chunks:
        data = chunk
        while data:
            if not inside:
                if padding and not (data := data.lstrip(b"\0")):
                    break
                frame = start()
                inside = True
            yield from frame.feed(data)
            data = b""
            if frame.done:
                data = frame.rest
                inside = False
    if inside:
        yield from frame.feed(b"")
        if not frame.done:
            raise InvalidLayerError("layer: its compressed data is cut off")


def _bounded(chunks: Iterable[bytes], count: Callable[[], int], limits: Limits) -> Iterator[bytes]:
    """Pass `chunks` on until they are more than `limits` allow for the packed bytes that `count` tells."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limits.ratio_floor and total > limits.ratio * count():
            raise LimitError(
                f"layer: unpacks to more than {limits.ratio} times its size, a bomb", "limits.ratio"
            )
        yield chunk


def inflate(chunks: Iterable[bytes], declared: str, limits: Limits) -> Iterator[bytes]:
    """Yield the tar archive in `chunks`, unpacked piece by piece; `declared` is tar, gzip or zstd.

    A layer that is declared as compressed may be packed another way: containerd and Docker look at its first bytes, so
    such images exist, and the digest of the result is checked in any case. Raises InvalidLayerError.
    """
    source = iter(chunks)
    head = b""
    while len(head) < 4 and (chunk := next(source, b"")):
        head += chunk
    packed = 0

    def counted() -> Iterator[bytes]:
        nonlocal packed
        packed += len(head)
        yield head
        for chunk in source:
            packed += len(chunk)
            yield chunk

    if declared != "tar" and head.startswith(_GZIP):
        return _bounded(_frames(counted(), _Gzip, padding=True), lambda: packed, limits)
    if declared != "tar" and (head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5)):
        module = _zstd_module()
        return _bounded(_frames(counted(), lambda: _Zstd(module), padding=False), lambda: packed, limits)
    return counted()
