"""From the options of `run` and `create` to a spec with one container: the same models check both.

Options are in Docker's words and forms, the spec in ours; what is wrong with a field of the spec is said of the option
that it came from. Pure: the caller has looked up environments, relative paths and whatever else is not on the line.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from reconciler.errors import UsageError
from reconciler.spec.adhoc import COMMAND_LINE
from reconciler.spec.defaults import Defaults
from reconciler.spec.load import LoadedApp, load
from reconciler.spec.marks import ERROR
from reconciler.spec.modes import JOINS
from reconciler.spec.terms import ANYTHING
from reconciler.spec.units import restart_policy, seconds, size, ulimit, whole
from reconciler.spec.values import NAME_PATTERN

CONTAINER: Final = "main"
_FILE: Final = "command line"
_SHORT_ID: Final = 12
_NO_LIMIT: Final = 4_194_304  # processes: the kernel's own most (PID_MAX_LIMIT)
_NETWORK: Final = re.compile(NAME_PATTERN, re.ASCII)
_MOUNT_KEYS: Final = {"src": "source", "dst": "target", "destination": "target"}


@dataclass(frozen=True)
class Options:
    """What a command line says of a container. Texts are as people write them, "" and None for what they left out.

    `ipv6` nobody writes: it says that the network has that.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    ports: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    hostname: str = ""
    init: bool = False
    read_only: bool = False
    restart: str = ""
    stop_signal: str = ""
    stop_timeout: str = ""
    labels: tuple[str, ...] = ()
    memory: str = ""
    memory_swap: str = ""
    cpus: str = ""
    pids_limit: str = ""
    storage_opt: tuple[str, ...] = ()
    network: str = ""
    ipv6: bool = False
    network_alias: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    security_opt: tuple[str, ...] = ()
    add_device: tuple[str, ...] = ()
    ulimit: tuple[str, ...] = ()
    sysctl: tuple[str, ...] = ()
    shm_size: str = ""
    cpuset_cpus: str = ""
    oom_score_adj: str = ""
    userns: str = ""
    annotation: tuple[str, ...] = ()
    log_driver: str = ""
    log_opt: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Options":
        """The options of a request; UsageError for what is none, or of another type."""
        found: dict[str, Any] = {}
        for name, given in value.items():
            kind = cls.__dataclass_fields__.get(name)
            if kind is None:
                raise UsageError(f"{name}: not an option")
            if kind.type == tuple[str, ...]:
                if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
                    raise UsageError(f"{name}: expected a list of strings")
                found[name] = tuple(given)
                continue
            if not isinstance(given, bool if kind.type is bool else str):
                raise UsageError(f"{name}: expected {'true or false' if kind.type is bool else 'a string'}")
            found[name] = given
        return cls(**found)


@dataclass
class _Draft:
    """A container's fields in the making, and which option each came from, as errors name the fields."""

    fields: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    identity: str = ""

    def set(self, name: str, value: Any, option: str) -> None:
        self.fields[name] = value
        self.said[name] = option

    def each(self, name: str, values: Sequence[str], option: str, parse: Callable[[str], Any]) -> None:
        for text in values:
            items = self.fields.setdefault(name, [])
            self.said[f"{name}[{len(items)}]"] = f"{option} {text}"
            items.append(parse(text))


def anonymous_name(identity: str, target: str) -> str:
    """The name of the volume that the container `identity` gets at `target` where its people name none."""
    return hashlib.sha256(f"{identity}\0{target.rstrip('/')}".encode("utf-8", "surrogateescape")).hexdigest()[
        :32
    ]


def spec_text(options: Options, image: str, *, identity: str) -> tuple[str, Mapping[str, str]]:
    """The text of a spec with the one container, and the options that its fields came from; UsageError.

    `identity` is the container's id: its host name, and the names of its anonymous volumes, come from it.
    """
    draft = _Draft({"image": image}, identity=identity)
    if options.entrypoint is not None:
        draft.set("entrypoint", [options.entrypoint] if options.entrypoint else [], "--entrypoint")
    if options.command:
        draft.set("command", list(options.command), "the command")
    draft.each("ports", options.ports, "-p", str)
    draft.each("volumes", options.volumes, "-v", lambda text: _volume(text, draft))
    draft.each("volumes", options.mounts, "--mount", lambda text: _mount(text, draft))
    draft.each("volumes", options.tmpfs, "--tmpfs", _tmpfs)
    if options.environment:
        variables = dict(text.partition("=")[::2] for text in options.environment)  # the last one counts
        draft.set("environment", [f"{name}={value}" for name, value in variables.items()], "-e")
    for name, value, option in (
        ("user", options.user, "-u"),
        ("working_dir", options.workdir, "-w"),
        ("stop_signal", options.stop_signal, "--stop-signal"),
    ):
        if value:
            draft.set(name, value, option)
    if options.hostname or not options.network.startswith(JOINS):
        draft.set("hostname", options.hostname or identity[:_SHORT_ID], "--hostname")
    if options.init:
        draft.set("init", True, "--init")
    if options.read_only:
        draft.set("read_only", True, "--read-only")
    if options.stop_timeout:
        draft.set("stop_grace_period", seconds(options.stop_timeout, "--stop-timeout"), "--stop-timeout")
    if options.labels:
        draft.set(
            "labels", {text.partition("=")[0]: text.partition("=")[2] for text in options.labels}, "--label"
        )
    _surroundings(options, draft)
    _privileges(options, draft)
    draft.set("restart", restart_policy(options.restart or "no"), "--restart")
    limits = _limits(options, draft)
    if limits:
        draft.fields["limits"] = limits
    document = {
        "apiVersion": "reconciler/v1",
        "kind": "App",
        "name": COMMAND_LINE,
        "volumes": draft.volumes,
        **({"networks": draft.networks} if draft.networks else {}),
        "containers": {CONTAINER: draft.fields},
    }
    return _text(document), draft.said


def changed_text(text: str, options: Options) -> tuple[str, Mapping[str, str]]:
    """The same spec with the limits and the restart policy that `options` name; for `update`."""
    value = json.loads(text)
    fields = value["containers"][CONTAINER]
    draft = _Draft()
    limits = _limits(options, draft, before=fields.get("limits", {}))
    if limits:
        fields["limits"] = limits
    if options.restart:
        draft.set("restart", restart_policy(options.restart), "--restart")
        fields["restart"] = draft.fields["restart"]
    return _text(value), draft.said


def _text(document: object) -> str:
    """JSON that is YAML as well: what YAML wants escaped is, and nothing else, as it knows no surrogate pairs."""
    text = json.dumps(document, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in text)


def load_text(text: str, defaults: Defaults, said: Mapping[str, str] | None = None) -> LoadedApp:
    """The app of such a text; UsageError with everything that is wrong, in the words of the command line.

    Any path but / and /proc may be mounted: root's own command line is no commit, which `allowed_binds` is for.
    """
    loaded = load(
        {_FILE: text.encode("utf-8", "surrogateescape")},
        lambda path: b"",
        terms=ANYTHING,
        defaults=defaults,
    )
    errors = [problem for problem in loaded.problems if problem.severity == ERROR]
    if errors or not loaded.apps:
        lines = dict.fromkeys(_of_option(problem.message, said or {}) for problem in errors)
        hints = dict.fromkeys(problem.hint for problem in errors if problem.hint)
        raise UsageError("\n".join(lines) or "not understood", hint="; ".join(hints))
    return loaded.apps[COMMAND_LINE]


def _of_option(message: str, said: Mapping[str, str]) -> str:
    for name in sorted(said, key=len, reverse=True):
        if name.endswith("]") and not message.startswith(name):
            message = message.replace(name, said[name])
    for name in sorted(said, key=len, reverse=True):
        if message.startswith(name):
            rest = message[len(name) :]
            if rest.startswith("."):
                return f"{said[name]}: {rest[1:]}"
            if not rest[:1].isalnum():
                return f"{said[name]}{rest}"
    return message.replace(f"{COMMAND_LINE}/{CONTAINER}", "this container")


# --- forms -----------------------------------------------------------------------------------------------------------


def _volume(text: str, draft: _Draft) -> object:
    """Docker's three forms: PATH alone is an anonymous volume, and a path of the device is made where nothing is."""
    source, colon, rest = text.partition(":")
    if not colon:
        if not source.startswith("/"):
            raise UsageError(
                f"-v {text}: where in the container is it to be", hint=f"write {text}:/path, or /path"
            )
        name = anonymous_name(draft.identity, source)
        draft.volumes.setdefault(name, {})
        return f"{name}:{source}"
    if not source.startswith(("/", ".", "~")):
        draft.volumes.setdefault(source, {})
        return text
    target, _, access = rest.partition(":")
    if not target or access not in ("", "ro", "rw"):
        return text  # as the spec has it, or what is wrong with it
    return {
        "type": "bind",
        "source": source,
        "target": target,
        "read_only": access == "ro",
        "create_host_path": True,
    }


def _mount(text: str, draft: _Draft) -> object:
    """Docker's `type=bind,source=/a,target=/b,readonly` as the spec's long form."""
    found: dict[str, Any] = {"type": "volume"}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = _MOUNT_KEYS.get(key, key)
        match key:
            case "type" | "source" | "target":
                found[key] = value
            case "readonly" | "ro":
                found["read_only"] = not equals or value in ("1", "true")
            case "tmpfs-size":
                found["size"] = size(value, f"--mount {text}")
            case "tmpfs-mode":
                found["mode"] = value
            case _:
                raise UsageError(
                    f"--mount {text}: {key!r} is not understood",
                    hint="known: type, source, target, readonly, tmpfs-size, tmpfs-mode",
                )
    if found["type"] == "volume":
        if not found.get("source"):
            found["source"] = anonymous_name(draft.identity, str(found.get("target", "")))
        draft.volumes.setdefault(found["source"], {})
    return found


def _tmpfs(text: str) -> object:
    """Docker's `PATH[:size=SIZE,mode=MODE]` as the spec's long form."""
    target, _, options = text.partition(":")
    found: dict[str, Any] = {"type": "tmpfs", "target": target}
    for part in filter(None, options.split(",")):
        key, _, value = part.partition("=")
        if key == "size":
            found["size"] = size(value, f"--tmpfs {text}")
        elif key == "mode":
            found["mode"] = value
        elif key != "rw":
            raise UsageError(f"--tmpfs {text}: {key!r} is not understood", hint="known: size, mode")
    return found


def _surroundings(options: Options, draft: _Draft) -> None:
    """Network, names, log and what of the kernel is its own."""
    shared = options.network.removeprefix("/")
    if shared in ("", "default", "bridge", "host", "none") or ":" in shared:
        if options.network_alias:
            raise UsageError(
                f"--network-alias {options.network_alias[0]}: goes with a network that has a name",
                hint="give that too: --network NAME; in the others a container is found by its --name",
            )
        if options.network:
            mode = "bridge" if options.network == "default" else options.network
            draft.set("network_mode", mode, "--network")
    elif _NETWORK.fullmatch(shared):
        draft.networks[shared] = {"external": True, **({"ipv6": True} if options.ipv6 else {})}
        draft.set("networks", {shared: {"aliases": list(options.network_alias)}}, "--network")
        for index, alias in enumerate(options.network_alias):
            draft.said[f"networks.{shared}.aliases[{index}]"] = f"--network-alias {alias}"
    else:
        raise UsageError(
            f"--network {options.network}: expected bridge, host, none, container:NAME, or the name of a network that "
            "apps share",
            hint="run: reconciler network ls",
        )
    draft.each("dns", options.dns, "--dns", str)
    draft.each("dns_search", options.dns_search, "--dns-search", str)
    draft.each("dns_opt", options.dns_option, "--dns-option", str)
    draft.each("extra_hosts", options.add_host, "--add-host", str)
    for name, texts, option in (
        ("sysctls", options.sysctl, "--sysctl"),
        ("annotations", options.annotation, "--annotation"),
    ):
        if texts:
            draft.set(name, {text.partition("=")[0]: text.partition("=")[2] for text in texts}, option)
    if options.ulimit:
        draft.set("ulimits", dict(ulimit(text) for text in options.ulimit), "--ulimit")
    if options.shm_size:
        draft.set("shm_size", size(options.shm_size, "--shm-size"), "--shm-size")
    if options.cpuset_cpus:
        draft.set("cpuset", options.cpuset_cpus, "--cpuset-cpus")
    if options.oom_score_adj:
        draft.set("oom_score_adj", whole(options.oom_score_adj, "--oom-score-adj"), "--oom-score-adj")
    logging: dict[str, Any] = {}
    if options.log_driver:
        driver = "file" if options.log_driver in ("json-file", "local") else options.log_driver
        logging["driver"] = driver
        draft.said["logging.driver"] = "--log-driver"
    for text in options.log_opt:
        match text.partition("="):
            case ("max-size", "=", value):
                logging["max_size"] = size(value, f"--log-opt {text}")
            case ("max-file", "=", value):
                logging["max_files"] = whole(value, f"--log-opt {text}")
            case ("compress", "=", "true" | "false" as value):
                logging["compress"] = value == "true"
            case _:
                raise UsageError(
                    f"--log-opt {text}: is not understood", hint="known: max-size, max-file, compress"
                )
    if logging:
        draft.fields["logging"] = logging


def _privileges(options: Options, draft: _Draft) -> None:
    draft.each("group_add", options.group_add, "--group-add", str)
    draft.each("cap_add", options.cap_add, "--cap-add", str)
    draft.each("cap_drop", options.cap_drop, "--cap-drop", str)
    draft.each("devices", options.add_device, "--add-device", str)
    if options.privileged:
        draft.set("privileged", True, "--privileged")
    if options.userns:
        draft.set("userns", options.userns, "--userns")
    for text in options.security_opt:
        name, value = security_option(text)
        match name, value:
            case "no-new-privileges", "" | "true":
                draft.set("no_new_privileges", True, "--security-opt")
            case "no-new-privileges", "false":
                draft.set("no_new_privileges", False, "--security-opt")
            case "seccomp", "unconfined":
                draft.set("seccomp", value, "--security-opt seccomp")
            case "seccomp", "default" | "builtin":
                draft.set("seccomp", "default", "--security-opt seccomp")
            case "seccomp", content if content.lstrip().startswith("{"):
                draft.set("seccomp", {"content": content}, "--security-opt seccomp")
            case _:
                raise UsageError(
                    f"--security-opt {text}: not offered yet",
                    hint="known: no-new-privileges[=false], seccomp=unconfined, seccomp=FILE",
                )


def security_option(text: str) -> tuple[str, str]:
    """Take apart `name=value`, or `name:value` as older guides have it."""
    name = re.split("[=:]", text, maxsplit=1)[0]
    return name, text[len(name) + 1 :]


def _limits(options: Options, draft: _Draft, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    limits = dict(before or {})
    if options.cpus:
        limits["cpus"] = options.cpus
        draft.said["limits.cpus"] = "--cpus"
    if options.pids_limit:
        if re.fullmatch(r"-?\d{1,10}", options.pids_limit, re.ASCII) is None:
            raise UsageError(f"--pids-limit {options.pids_limit}: expected a number")
        number = int(options.pids_limit)
        limits["pids"] = number if number > 0 else _NO_LIMIT
        draft.said["limits.pids"] = "--pids-limit"
    for text in options.storage_opt:
        key, _, amount = text.partition("=")
        if key != "size" or not amount:
            raise UsageError(f"--storage-opt {text}: expected size=SIZE")
        limits["rootfs"] = size(amount, "--storage-opt")
        draft.said["limits.rootfs"] = "--storage-opt"
    if options.memory:
        limits["memory"] = size(options.memory, "--memory")
        draft.said["limits.memory"] = "--memory"
    if options.memory_swap:
        memory = limits.get("memory")
        total = size(options.memory_swap, "--memory-swap")
        if memory is None:
            raise UsageError("--memory-swap: needs --memory too")
        if total < memory:
            raise UsageError(
                "--memory-swap: is memory and swap together, so it can't be less than --memory",
                hint="the same as --memory: no swap",
            )
        limits["swap"] = total - memory
        draft.said["limits.swap"] = "--memory-swap"
    return limits
