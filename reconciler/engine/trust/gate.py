"""The gate that every image passes on its way in, and once more before a container is made from it.

Fail closed: unless a key that the image's rule names today has signed the very digest that is asked for, the answer is
no, whatever the reason. What was verified before, and by whom, is kept with the image, so that a device off the net
goes on; a key that was taken out of the rule, or out of its file, no longer vouches. Thread-safe.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from reconciler.config import TrustRule
from reconciler.engine.trust import keys
from reconciler.engine.trust.claim import Material, claim
from reconciler.engine.trust.gather import Search, gather
from reconciler.engine.trust.keys import KeyFileError, Keys, PublicKey
from reconciler.engine.trust.record import Kept, Records, Voucher
from reconciler.engine.trust.shelf import Shelf
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Digest, Reference
from reconciler.spec.trust import matches

_HERE: Final = "this device"  # the source of what was kept
_NOT_YET: Final = "not verified yet"


class UntrustedImageError(VerificationError):
    """No key that is asked for has signed the image, as far as can be told now."""


class Standing(Enum):
    """Whether an image may be used, as far as is known without asking anybody."""

    ADMITTED = "admitted"  # no rule asks for a signature, or a key has vouched for it
    UNASKED = "unasked"  # it may be used, but whether it is signed is not known yet
    HELD = "held"  # it may not be used before a signature is found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one image: by which rule, who vouches for it, or why nobody does ("" where none is asked).

    `key` is the path of the key that vouches.
    """

    rule: TrustRule | None = None
    voucher: Voucher | None = None
    key: str = ""
    problem: str = ""

    @property
    def word(self) -> str:
        """One word for tables: yes, no, or - where no rule asks."""
        if self.rule is None:
            return "-"
        return "no" if self.voucher is None else "yes"

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "rule": self.rule.place if self.rule is not None else "",
            "mode": "" if self.rule is None else "require" if self.rule.required else "warn",
            "signed": None if self.rule is None else self.voucher is not None,
            "key": self.key,
            "fingerprint": self.voucher.key if self.voucher is not None else "",
            "form": self.voucher.form.value if self.voucher is not None else "",
            "source": self.voucher.source if self.voucher is not None else "",
            "verified": int(self.voucher.time) if self.voucher is not None else None,
            "problem": self.problem,
        }


class Trust:
    """The rules of device.yaml over one state directory.

    `results` counts verifications: ok, missing, bad. `listener` is told of each that came out otherwise than the last
    one: the image's reference, and a sentence.
    """

    def __init__(self, rules: Sequence[TrustRule], records: Records) -> None:
        self._rules = tuple(rules)
        self._records = records
        self._keys = Keys()
        self._lock = threading.Lock()
        self._problems: dict[tuple[Digest, str], tuple[object, str]] = {}
        self._vouchers: dict[Digest, dict[str, Voucher]] = {}  # where nothing is to be kept, or could be
        self._told: dict[str, str] = {}
        self.results: Counter[str] = Counter()
        self.listener: Callable[[str, str], object] = lambda reference, text: None

    @property
    def asks(self) -> bool:
        """Whether there is any rule."""
        return bool(self._rules)

    def rule(self, reference: Reference) -> TrustRule | None:
        """The first rule about the repository of `reference`."""
        return next((rule for rule in self._rules if matches(rule.match, reference)), None)

    def stamp(self) -> object:
        """What changes when a key file, or anything that is kept, does; cheap, for every turn."""
        if not self._rules:
            return ()
        paths = dict.fromkeys(path for rule in self._rules for path in rule.keys)
        return tuple(keys.stamp(path) for path in (*paths, str(self._records.directory)))

    # --- without asking anybody ------------------------------------------------------------------------------------

    def standing(self, reference: Reference) -> Standing:
        """What is known of the image that `reference` pins, from its record and today's keys."""
        rule = self.rule(reference)
        if rule is None or self.verdict(reference).voucher is not None:
            return Standing.ADMITTED
        if rule.required:
            return Standing.HELD
        return Standing.ADMITTED if self._said(reference, rule) else Standing.UNASKED

    def verdict(self, reference: Reference) -> Verdict:
        """The same with the reasons; reads the record and the key files, and nothing else."""
        rule = self.rule(reference)
        if rule is None or reference.digest is None:
            return Verdict(rule)
        with self._lock:
            found, wrong = self._keys.read(rule.keys)
        by_fingerprint = {key.fingerprint: key for key in found}
        voucher = self._records.read(reference.digest).voucher(by_fingerprint)
        if voucher is None:
            verified = self._vouchers.get(reference.digest, {})
            voucher = next((one for key, one in verified.items() if key in by_fingerprint), None)
        if voucher is not None:
            return Verdict(rule, voucher, by_fingerprint[voucher.key].path)
        with self._lock:
            _, said = self._problems.get((reference.digest, rule.match), (None, ""))
        return Verdict(rule, problem=said or "; ".join(map(str, wrong)) or _NOT_YET)

    def unsigned(self, reference: Reference) -> str:
        """Why nobody vouches for an image that is used all the same, because its rule only warns; "" for all others."""
        rule = self.rule(reference)
        verdict = self.verdict(reference) if rule is not None and not rule.required else Verdict()
        return "" if verdict.voucher is not None or verdict.problem == _NOT_YET else verdict.problem

    def _said(self, reference: Reference, rule: TrustRule) -> str:
        """Why nobody vouched for the image when it was looked up last, if nothing has changed since."""
        if reference.digest is None:
            return ""
        with self._lock:
            known = self._problems.get((reference.digest, rule.match))
        return known[1] if known is not None and known[0] == self._basis(reference.digest, rule) else ""

    def _basis(self, digest: Digest, rule: TrustRule) -> object:
        """What a verification goes by, and can change here."""
        return tuple(keys.stamp(path) for path in (*rule.keys, str(self._records.path(digest))))

    def forget(self) -> None:
        """Ask again about what was not signed: somebody wants it."""
        with self._lock:  # what was said stays said until there is another answer
            self._problems = {key: (None, text) for key, (_, text) in self._problems.items()}

    # --- verifying -------------------------------------------------------------------------------------------------

    def admit(
        self,
        reference: Reference,
        content: Callable[[], bytes],
        shelves: Callable[[], Iterable[Shelf]],
        *,
        keep: bool = True,
        afresh: bool = False,
    ) -> Verdict:
        """Return who vouches for the image that `reference` pins; UntrustedImageError where nobody does who has to.

        `content` is the document that has this digest, `shelves` are where signatures are looked for, in their order,
        once nothing that is kept here vouches; `afresh`: verified once more, not only looked up. With `keep` what was
        verified is kept; a disk that does not take it changes nothing about the answer. Where a rule only warns, the
        verdict has the problem.
        """
        known = self.verdict(reference)
        digest, rule = reference.digest, known.rule
        if rule is None or digest is None or (known.voucher is not None and not afresh):
            return known
        if not rule.required and not afresh and self._said(reference, rule):
            return known
        with self._lock:
            found, wrong = self._keys.read(rule.keys)
        search = Search()
        for error in wrong:
            search.note(error)
        kept = self._records.read(digest)
        for source, material in _materials(kept, shelves if found else tuple, digest, search):
            try:
                key = vouching(found, material, digest, content)
            except ReconcilerError as error:
                search.note(error)
                continue
            if key is None:
                search.say(f"{source}: signed by another key")
                continue
            voucher = Voucher(key.fingerprint, material.form, source, time.time())
            if keep:
                self._keep(digest, kept.with_material(material).with_voucher(voucher))
            with self._lock:
                self._vouchers.setdefault(digest, {})[key.fingerprint] = voucher
                self.results["ok"] += 1
            self._tell(reference, f"signed by {key.path} ({key.fingerprint})")
            return Verdict(rule, voucher, key.path)
        problem = explain(reference, rule, search)
        with self._lock:
            self.results["bad" if search.found else "missing"] += 1
            self._problems[digest, rule.match] = self._basis(digest, rule), problem
        self._tell(reference, problem)
        if rule.required:
            hint = f"run: reconciler verify {reference}"
            raise UntrustedImageError(problem, hint=hint, transient=search.transient)
        return Verdict(rule, problem=problem)

    def _tell(self, reference: Reference, text: str) -> None:
        """Tell whoever listens, once for as long as it stays the same."""
        with self._lock:
            known, self._told[str(reference)] = self._told.get(str(reference)), text
        if known != text:
            self.listener(str(reference), text)

    def _keep(self, digest: Digest, kept: Kept) -> None:
        try:
            self._records.write(digest, kept)
        except OSError:
            pass  # a full disk: it is verified again next time

    def collect(
        self, digest: Digest, content: Callable[[], bytes], shelves: Callable[[], Iterable[Shelf]]
    ) -> None:
        """Keep the signatures that lie on these shelves for `digest`, whoever made them: they came with the image.

        Nothing is verified by it, nor believed.
        """
        before = kept = self._records.read(digest)
        for material in self.signatures(digest, content, shelves, Search()):
            kept = kept.with_material(*kept.materials, material)
        if kept != before:
            self._keep(digest, kept)

    def signatures(
        self,
        digest: Digest,
        content: Callable[[], bytes],
        shelves: Callable[[], Iterable[Shelf]],
        search: Search,
    ) -> list[Material]:
        """Return all that is kept, or lies on the shelves, and is well-formed and about `digest`, whoever made it."""
        found = []
        for _, material in _materials(self._records.read(digest), shelves, digest, search):
            try:
                claim(material, digest, content)
            except ReconcilerError as error:
                search.note(error)
            else:
                found.append(material)
        return found


def _materials(
    kept: Kept, shelves: Callable[[], Iterable[Shelf]], digest: Digest, search: Search
) -> Iterable[tuple[str, Material]]:
    """What is kept, then what lies on each shelf, each signature once, with where it is from."""
    seen: set[Material] = set()
    for material in kept.materials:
        seen.add(material)
        search.found += 1
        yield _HERE, material
    for shelf in shelves():
        for material in gather(shelf, digest, search):
            if material not in seen:
                seen.add(material)
                yield shelf.name, material


def vouching(
    found: Sequence[PublicKey], material: Material, digest: Digest, content: Callable[[], bytes]
) -> PublicKey | None:
    """Return the key that has made this signature of `digest`, or None; VerificationError where it says another thing.

    KeyFileError where none of the keys can be used and one of them is no key.
    """
    from reconciler.engine.trust.verify import vouches

    said = claim(material, digest, content)
    wrong: KeyFileError | None = None
    for key in found:
        try:
            if vouches(key, said):
                return key
        except KeyFileError as error:
            wrong = error
    if wrong is not None:
        raise wrong
    return None


def explain(reference: Reference, rule: TrustRule, search: Search) -> str:
    """The sentence about an image that nobody vouches for: which rule asks, and what was found."""
    asked = f"{rule.place} asks for a signature by {' or '.join(rule.keys)}"
    if not search.notes:
        return f"image {reference}: not signed: {asked}"
    what = "not signed by any of them" if search.found else "none was found"
    return f"image {reference}: not verified: {asked}, {what}: {'; '.join(search.notes)}"
