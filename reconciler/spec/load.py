"""Files to apps: parse, validate, apply the rules within and between files, report everything that is wrong at once.

`load` is called every turn, with mostly unchanged files: what a file came to is kept in the caller's cache, so that a
turn over a thousand unchanged files costs a few milliseconds. It reads no file itself: content comes as an argument and
through `read_config`. An app with an error is left out, and is the only one (with those it contradicts).
"""

import gc
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from reconciler.errors import ReconcilerError
from reconciler.spec.check import check
from reconciler.spec.defaults import BUILT_IN, Defaults, with_defaults
from reconciler.spec.environment import faulty, labels_of
from reconciler.spec.fault import Fault
from reconciler.spec.finding import Finding
from reconciler.spec.marks import ERROR, WARNING, Mark, Problem, printable
from reconciler.spec.model import App, Config
from reconciler.spec.places import MAX_PROBLEMS, Locator, Marks
from reconciler.spec.profile import misspelt, normal
from reconciler.spec.reference import STAND_IN
from reconciler.spec.rules import Known, check_app, check_apps
from reconciler.spec.seccomp import Profile
from reconciler.spec.terms import Terms
from reconciler.spec.yaml12 import MAX_BYTES, Node, Scalar, compose
from reconciler.spec.yaml12 import Mapping as MappingNode

_STAND_INS: Final[Mapping[str, object]] = {
    "apiVersion": "reconciler/v1",
    "kind": "App",
    "name": "unnamed",
    "image": STAND_IN,
}
# A file that says this is meant as an app, however broken it is otherwise.
_OURS: Final = re.compile(rb"""^apiVersion:[ \t]*["']?reconciler/""", re.MULTILINE)
_MANY: Final = 100
_SECTIONS: Final = ("containers", "volumes", "configs", "networks")


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """In place of the content of a file that could not be read: why (a link to elsewhere, a FIFO, too large)."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An app that may be used. `config_files` holds the content of its configs by name, whether `content` or `file`,
    `profiles` the seccomp profiles of its containers, in their one form, by the container's name.

    `digest` (hex sha256) identifies everything that was read: the file's bytes, the contents of configs and profiles,
    and `labels`, the device's labels that it asks for.
    """

    path: str
    app: App
    marks: Marks = field(compare=False)
    config_files: Mapping[str, bytes]
    digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def named(self) -> tuple[tuple[str, bytes], ...]:
        """The files of the repository that it names, with their contents."""
        found = [(config.file, self.config_files[name]) for name, config in sorted(self.app.configs.items())]
        for name, profile in sorted(self.profiles.items()):
            source = self.app.containers[name].seccomp
            found.append((source.file if isinstance(source, Profile) else None, profile))
        return tuple((path, content) for path, content in found if path is not None)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files came to. `failed` maps files that can't be used to their errors; `problems` has all, sorted."""

    apps: Mapping[str, LoadedApp]
    problems: tuple[Problem, ...]
    failed: Mapping[str, tuple[Problem, ...]]


@dataclass(slots=True)
class _Parsed:
    """What one file came to by itself. `app` may be there with errors, for the rules between apps."""

    path: str
    data: bytes | ReadFailure
    problems: list[Problem]
    app: App | None = None
    locator: Locator | None = None
    name: str | None = None
    containers: frozenset[str] | None = None
    config_paths: frozenset[str] = frozenset()
    is_app: bool = True
    loaded: LoadedApp | None = None

    @property
    def failed(self) -> bool:
        return any(problem.severity == ERROR for problem in self.problems)


@dataclass(slots=True)
class _Kept:
    """What the cache holds between turns."""

    settings: tuple[object, ...]
    files: Mapping[str, bytes | ReadFailure] = field(default_factory=dict)
    parsed: dict[str, _Parsed] = field(default_factory=dict)
    result: Loaded | None = None
    config_problems: dict[str, list[Problem]] = field(default_factory=dict)


def load(
    files: Mapping[str, bytes | ReadFailure],
    read_config: Callable[[str], bytes],
    *,
    terms: Terms = Terms(),  # noqa: B008 - frozen
    defaults: Defaults = BUILT_IN,
    cache: dict[Any, Any] | None = None,
    alone: bool = False,
) -> Loaded:
    """Return the apps of `files` (by their path in the repository) and every problem of all of them.

    `read_config` returns the content of a file that a config names, or raises OSError or ReconcilerError. `cache` is an
    empty dict at first, kept by the caller; the result is the same with and without. Where nothing changed it is the
    very object of the last call, and where `files` is the mapping of the last call too, which nobody may have changed
    since, only what the configs name is looked at. With `alone` these are not all the files that there are: what they
    name of other apps is taken to be there.
    """
    settings = (terms, defaults)
    kept = cache.get("kept") if cache is not None else None
    if not isinstance(kept, _Kept) or kept.settings != settings:
        kept = _Kept(settings)
    if kept.files is files and kept.result is not None:
        return _load_configs(kept, kept.result, read_config, terms)
    now = _Kept(settings, files, {}, kept.result)
    changed = kept.result is None or len(kept.parsed) != len(files)
    unread = [path for path, data in files.items() if not _is_known(kept, path, data)]
    fresh: dict[str, _Parsed] = {}
    with _collector_paused(len(unread) >= _MANY):
        for path in unread:
            fresh[path] = _parse(path, files[path], terms, defaults)
    for path in sorted(files):
        known = fresh.get(path) or kept.parsed[path]
        changed = changed or path in fresh
        now.parsed[path] = known
        if known.config_paths or (known.app is not None and _needs_files(known.app)):
            before = known.loaded
            problems = now.config_problems[path] = _with_configs(known, read_config, terms)
            changed = changed or known.loaded is not before or problems != kept.config_problems.get(path)
    if changed or now.result is None:
        now.result = _join(now, alone)
    if cache is not None:
        cache["kept"] = now
    return now.result


def _load_configs(kept: _Kept, result: Loaded, read_config: Callable[[str], bytes], terms: Terms) -> Loaded:
    """What unchanged files come to: the same as last time, unless a config's content is another one now."""
    changed = False
    for path, before in kept.config_problems.items():
        known = kept.parsed[path]
        loaded = known.loaded
        problems = kept.config_problems[path] = _with_configs(known, read_config, terms)
        changed = changed or known.loaded is not loaded or problems != before
    if changed:
        result = kept.result = _join(kept, alone=False)
    return result


def _is_known(kept: _Kept, path: str, data: bytes | ReadFailure) -> bool:
    known = kept.parsed.get(path)
    return known is not None and (known.data is data or known.data == data)


@contextmanager
def _collector_paused(pause: bool) -> Iterator[None]:
    """Keep the cyclic garbage collector off, as reading many files makes only objects that stay.

    Going through all of them again and again is half of the time that a thousand files take (180 ms without, 380 with).
    """
    if not (pause and gc.isenabled()):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _parse(path: str, data: bytes | ReadFailure, terms: Terms, defaults: Defaults) -> _Parsed:
    if isinstance(data, ReadFailure):
        return _Parsed(path, data, [Problem(Mark(path, 1, 1), f"can't be read: {printable(data.reason)}")])
    root, source, problems = compose(path, data)
    if root is None:
        return _Parsed(path, data, problems, is_app=_OURS.search(data) is not None)
    checked = check(App, root, source, stand_ins=_STAND_INS)
    problems += checked.problems
    parsed = _Parsed(
        path,
        data,
        problems,
        app=None if checked.model is None else with_defaults(checked.model, defaults),
        locator=checked.locator,
        name=_text(root, "name"),
        containers=_keys(root, "containers"),
        config_paths=_config_paths(root),
        is_app=_OURS.search(data) is not None or (_text(root, "apiVersion") or "").startswith("reconciler/"),
    )
    containers = _entry(root, "containers")
    said = isinstance(containers, Scalar) or ("containers",) in checked.excused
    if isinstance(root, MappingNode) and not _keys(root, "containers") and not said:
        message = "an app needs at least one container"
        problems.append(checked.locator.problem(("containers",), message, at_key=True))
    if parsed.app is not None:
        found = check_app(
            parsed.app,
            terms=terms,
            declared={section: _keys(root, section) or frozenset() for section in _SECTIONS},
            partial=bool(problems),
            memory_said=_memory_said(root),
        )
        problems += _problems(checked.locator, found, len(problems))
    if parsed.app is not None and not parsed.failed and not _needs_files(parsed.app):
        parsed.loaded = _loaded(parsed, parsed.app, checked.locator, {}, {}, terms)
    return parsed


def _problem(locator: Locator, finding: Finding) -> Problem:
    return locator.problem(
        locator.original(finding.path),
        finding.message,
        at_key=finding.at_key,
        severity=finding.severity,
        hint=finding.hint,
    )


def _problems(locator: Locator, findings: Sequence[Finding], before: int) -> list[Problem]:
    """Return the problems of findings; of many, after `before` others, as many as a person reads."""
    shown = findings[: max(1, MAX_PROBLEMS - before)]
    problems = [_problem(locator, finding) for finding in shown]
    if rest := findings[len(shown) :]:
        severity = ERROR if any(finding.severity == ERROR for finding in rest) else WARNING
        problems.append(locator.overflow(len(rest), severity))
    return problems


def _entry(root: Node, key: str) -> Node | None:
    return root.entries[key][1] if isinstance(root, MappingNode) and key in root.entries else None


def _text(root: Node, key: str) -> str | None:
    node = _entry(root, key)
    return node.text if isinstance(node, Scalar) else None


def _keys(root: Node, section: str) -> frozenset[str] | None:
    node = _entry(root, section)
    return frozenset(node.entries) if isinstance(node, MappingNode) else None


def _memory_said(root: Node) -> frozenset[str]:
    containers = _entry(root, "containers")
    if not isinstance(containers, MappingNode):
        return frozenset()
    limits = {name: _entry(container, "limits") for name, (_, container) in containers.entries.items()}
    return frozenset(
        name for name, node in limits.items() if node is not None and _entry(node, "memory") is not None
    )


def _needs_files(app: App) -> bool:
    return bool(app.configs) or any(
        isinstance(container.seccomp, Profile) for container in app.containers.values()
    )


def _config_paths(root: Node) -> frozenset[str]:
    """Return the files that the app's configs and profiles name, also if the rest of it is broken."""
    named: list[str | None] = []
    for section, inner, key in (("configs", "", "file"), ("containers", "seccomp", "profile")):
        nodes = _entry(root, section)
        for _, node in nodes.entries.values() if isinstance(nodes, MappingNode) else ():
            holder = _entry(node, inner) if inner else node
            named.append(_text(holder, key) if holder is not None else None)
    return frozenset(path for path in named if path)


def _loaded(
    parsed: _Parsed,
    app: App,
    locator: Locator,
    contents: Mapping[str, bytes],
    profiles: Mapping[str, bytes],
    terms: Terms,
) -> LoadedApp:
    assert isinstance(parsed.data, bytes)
    seen = hashlib.sha256(hashlib.sha256(parsed.data).digest())
    for name in sorted(contents):
        seen.update(name.encode() + b"\0" + hashlib.sha256(contents[name]).digest())
    for name in sorted(profiles):
        seen.update(f"seccomp {name}".encode() + b"\0" + hashlib.sha256(profiles[name]).digest())
    labels = {label: terms.labels.get(label, "") for label in labels_of(app)}
    for label in sorted(labels):
        seen.update(f"{label}={labels[label]}\0".encode())
    marks = Marks(parsed.path, locator.root)
    return LoadedApp(
        parsed.path,
        app,
        marks,
        MappingProxyType(dict(contents)),
        seen.hexdigest(),
        MappingProxyType(labels),
        MappingProxyType(dict(profiles)),
    )


def _with_configs(parsed: _Parsed, read_config: Callable[[str], bytes], terms: Terms) -> list[Problem]:
    """Read the files of an app, complete its LoadedApp if that is new, and return what is wrong with them."""
    if parsed.app is None or parsed.locator is None:
        return []
    contents: dict[str, bytes] = {}
    profiles: dict[str, bytes] = {}
    problems: list[Problem] = []
    for name, config in parsed.app.configs.items():
        try:
            contents[name] = _content(config, read_config)
        except Fault as fault:
            message = f"configs.{name}.file: {config.file}: {fault.message}"
            problems.append(parsed.locator.problem(("configs", name, "file"), message))
    for name, container in parsed.app.containers.items():
        if isinstance(container.seccomp, Profile):
            key, shown = container.seccomp.where
            place = ("containers", name, "seccomp", key)
            try:
                profiles[name] = normal(_content(container.seccomp, read_config))
            except Fault as fault:
                message = f"seccomp: {shown}: {printable(fault.message)}"
                problems.append(parsed.locator.problem(place, message))
            else:
                if names := ", ".join(misspelt(profiles[name])):
                    message = f"seccomp: {shown}: refuses calls that nobody knows: {names}"
                    problems.append(parsed.locator.problem(place, printable(message), severity=WARNING))
    problems += (
        parsed.locator.problem(parsed.locator.original(path), said)
        for path, said in faulty(parsed.app, contents)
    )
    if any(problem.severity == ERROR for problem in problems):
        parsed.loaded = None
        return problems
    have = parsed.loaded
    unchanged = have is not None and (have.config_files, have.profiles) == (contents, profiles)
    if not parsed.failed and not unchanged:
        parsed.loaded = _loaded(parsed, parsed.app, parsed.locator, contents, profiles, terms)
    return problems


def _content(source: Config | Profile, read_config: Callable[[str], bytes]) -> bytes:
    """Return what `source` is or names, or raise Fault."""
    if source.file is None:
        return (source.content or "").encode()
    try:
        found = read_config(source.file)
    except FileNotFoundError:
        reason = "there is no such file in the source"
    except OSError as error:
        reason = f"can't be read: {error.strerror or type(error).__name__}"
    except ReconcilerError as error:
        reason = f"can't be read: {error}"
    else:
        if len(found) <= MAX_BYTES:
            return found
        reason = f"is larger than {MAX_BYTES >> 20} MiB"
    raise Fault(printable(reason))


def _join(now: _Kept, alone: bool) -> Loaded:
    """Apply the rules between apps to what the files came to."""
    configs = frozenset[str]().union(*(parsed.config_paths for parsed in now.parsed.values()))
    # A YAML file that an app uses as a config, and that does not say that it is ours, is not a broken app.
    considered = [p for p in now.parsed.values() if p.is_app or p.path not in configs]
    problems = {p.path: [*p.problems, *now.config_problems.get(p.path, ())] for p in considered}
    named: dict[str, list[_Parsed]] = {}
    for parsed in considered:
        if parsed.name is not None:
            named.setdefault(parsed.name, []).append(parsed)
    for name, same in named.items():
        for parsed in same if len(same) > 1 else ():
            others = ", ".join(printable(other.path) for other in same if other is not parsed)
            finding = Finding(("name",), f"the name '{printable(name)}' is also used in {others}")
            if parsed.locator is not None:
                problems[parsed.path].append(_problem(parsed.locator, finding))
    by_path = {parsed.path: parsed for parsed in considered}
    apps = [
        Known(parsed.name or parsed.path, parsed.app, parsed.path, partial=parsed.failed)
        for parsed in considered
        if parsed.app is not None and (parsed.name is None or len(named[parsed.name]) == 1)
    ]
    claimed = {
        name: None if any(p.failed for p in same) else same[0].containers for name, same in named.items()
    }
    complete = not alone and all(parsed.name is not None for parsed in considered)
    between: dict[str, list[Finding]] = {}
    for finding in check_apps(apps, claimed=claimed, complete=complete):
        between.setdefault(finding.app, []).append(finding)
    for path, findings in between.items():
        locator = by_path[path].locator
        assert locator is not None
        problems[path] += _problems(locator, findings, len(problems[path]))
    failed = {
        path: tuple(sorted(p for p in found if p.severity == ERROR))
        for path, found in problems.items()
        if any(problem.severity == ERROR for problem in found)
    }
    usable = [p.loaded for p in considered if p.path not in failed and p.loaded is not None]
    return Loaded(
        apps=MappingProxyType(
            {loaded.app.name: loaded for loaded in sorted(usable, key=lambda a: a.app.name)}
        ),
        problems=tuple(sorted(problem for found in problems.values() for problem in found)),
        failed=MappingProxyType(failed),
    )
