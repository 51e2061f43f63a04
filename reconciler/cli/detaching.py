"""The keys that detach from a terminal: how people write them, and how they are found in what is typed. Pure."""

from typing import Final

from reconciler.errors import UsageError

DEFAULT: Final = "ctrl-p,ctrl-q"
_CONTROL: Final = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def parse_keys(text: str) -> bytes:
    """The bytes of Docker's form: keys with commas between them, each a character or ctrl- and one of a-z @ [ \\ ] ^ _.

    UsageError for anything else.
    """
    found = bytearray()
    for key in text.split(","):
        control = key[5:].lower() if key.lower().startswith("ctrl-") else ""
        if len(control) == 1 and control in _CONTROL:
            found.append(_CONTROL.index(control))
        elif len(key) == 1 and key.isascii() and key.isprintable():
            found += key.encode()
        else:
            raise UsageError(
                f"--detach-keys {text[:40]!r}: {key[:20]!r} is no key",
                hint="keys with commas between them: a character, or ctrl- and one of a-z @ [ \\ ] ^ _",
            )
    return bytes(found)


class Keys:
    """Looks for the keys in what is typed, however it is cut up. What may be their beginning is held back."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data`, and of what was held back, goes on; and whether the keys are complete, which ends all."""
        passed = bytearray()
        for number in data:
            self._held += bytes((number,))
            while not self._keys.startswith(self._held):
                passed.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._keys:
                return bytes(passed), True
        return bytes(passed), False
