"""Docker's command line and ours: for each of its commands what does the same here, or why nothing does.

From here come the answer to a verb that is Docker's and not ours, and the table in docs/docker.md (`make docs`). Data
only; it imports nothing of this program.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Command:
    """One command of Docker's. `ours` is the verb that does the same, "" where none does; `says` what is different.

    `noun` is Docker's longer name of the same.
    """

    name: str
    ours: str
    says: str
    noun: str = ""


_BUILD: Final = (
    "not here, because images are built where there is a network and a registry, and pinned by digest here"
)
_SWARM: Final = "not here, because a device is on its own: a fleet is many devices that read one repository"
_PUSH: Final = "not here, because a device only takes images; push with the tool that built it, or skopeo"
_CONNECT: Final = "not here, because a network is part of what a spec says; change the spec"
_EMPTY: Final = "not needed: a network goes with the last container in it"

COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        "pull",
        "pull",
        "the registry's host is never left out; prints the digest; `-q` and `--all-tags` are not there",
        "image pull",
    ),
    Command("images", "images", "also shows what uses each, and the room that it alone takes", "image ls"),
    Command(
        "tag",
        "tag",
        "NAME alone becomes localhost/NAME:latest; in `run` and specs such a name is written out",
        "image tag",
    ),
    Command(
        "run",
        "run",
        "a VOLUME of the image is no volume; `--memory` without `--memory-swap` means no swap; `always` is Docker's "
        "`unless-stopped`; output passes through the log; `--device` is `--add-device`; `--ip` is not there, as a "
        "network that apps share has no subnet that anybody chose",
        "container run",
    ),
    Command("ps", "ps", "a declared container is called APP/CONTAINER", "container ls"),
    Command(
        "logs",
        "logs",
        "also `--grep`, and `--previous` for the run before; several containers at once",
        "container logs",
    ),
    Command("exec", "exec", "`-d`, `--privileged` and `--env-file` are not there", "container exec"),
    Command(
        "inspect",
        "inspect",
        "Docker's names wherever the meaning is the same; what has no name there is under `Reconciler`",
        "container inspect",
    ),
    Command("top", "top", "no options of ps: the host's pid, the one inside, memory, times", "container top"),
    Command("stats", "stats", "also pressure, and `--self` for the agent", "container stats"),
    Command("port", "port", "", "container port"),
    Command("diff", "diff", "", "container diff"),
    Command(
        "cp",
        "cp",
        "also of a container that does not run; no set-uid bits come out without `-a`",
        "container cp",
    ),
    Command("stop", "stop", "a declared container is held stopped until `start`", "container stop"),
    Command("start", "start", "also lets go of a held container", "container start"),
    Command("restart", "restart", "", "container restart"),
    Command("kill", "kill", "", "container kill"),
    Command("pause", "pause", "", "container pause"),
    Command("unpause", "unpause", "", "container unpause"),
    Command(
        "wait", "wait", "also `--for running`, `healthy`, `removed`, with a time limit", "container wait"
    ),
    Command(
        "update",
        "update",
        "of ad-hoc containers: memory, CPUs, processes, `--storage-opt`, restart policy; a declared one is changed "
        "in its spec",
        "container update",
    ),
    Command("create", "create", "as `run`", "container create"),
    Command(
        "rm",
        "rm",
        "a declared container goes with its spec",
        "container rm",
    ),
    Command(
        "attach",
        "attach",
        "also of declared containers, whose output it shows; output passes through the log, so that it takes "
        "`--log-driver file`",
        "container attach",
    ),
    Command(
        "rename",
        "rename",
        "of ad-hoc containers; a declared one is called what its spec calls it",
        "container rename",
    ),
    Command(
        "volume create",
        "volume create",
        "no drivers: a directory of the device; a `size_limit` is the spec's to say",
    ),
    Command("volume ls", "volume ls", "with size, limit and users; a volume of no app is called adhoc/NAME"),
    Command("volume inspect", "volume inspect", ""),
    Command("volume rm", "volume rm", "also refused while a spec declares it"),
    Command("volume update", "", "not here: that is for volumes of a cluster"),
    Command(
        "system df",
        "system df",
        "also what is kept of runs before; a layer that several images share counts once",
    ),
    Command(
        "rmi", "rmi", "refused while a container or a spec needs it; `-f` takes only names away", "image rm"
    ),
    Command(
        "image prune",
        "image prune",
        "without `-a` what nobody pulled or tagged by name (`run` names nothing) and nothing needs; "
        "a spec, and a generation that can be gone back to, need theirs",
    ),
    Command(
        "container prune",
        "container prune",
        "also what is kept of runs before; never a declared one",
    ),
    Command("volume prune", "volume prune", "never one that a spec declares; named ones with `-a`"),
    Command("system prune", "system prune", "the three above; volumes only with `--volumes`"),
    Command(
        "events",
        "events",
        "what the agent did and saw, kept on disk, instead of a stream from now on; an `exec` is two events",
        "system events",
    ),
    Command("version", "version", ""),
    Command("info", "doctor", "what this host offers and lacks, each with its remedy", "system info"),
    Command(
        "network ls",
        "network ls",
        "APP is an app's own network, APP/NAME a further one, /NAME one that apps share",
    ),
    Command("network inspect", "network inspect", "called as `network ls` calls it"),
    Command("network create", "", "not by hand: a spec declares it, `external: true` if apps share it"),
    Command("network connect", "", _CONNECT),
    Command("network disconnect", "", _CONNECT),
    Command("network rm", "", _EMPTY),
    Command("network prune", "", _EMPTY),
    Command("build", "", _BUILD, "image build"),
    Command("builder build", "", _BUILD),
    Command("builder prune", "", _BUILD),
    Command("buildx", "", _BUILD),
    Command(
        "commit", "", f"{_BUILD}; `cp` gets files out of a container, `diff` shows which", "container commit"
    ),
    Command(
        "history",
        "inspect",
        "`inspect IMAGE` has its layers; who built it knows what made them",
        "image history",
    ),
    Command("image inspect", "image inspect", ""),
    Command("export", "cp", "`cp NAME:/ -` writes a tar archive", "container export"),
    Command("import", "", _BUILD, "image import"),
    Command(
        "save",
        "save",
        "packed as it came where the registry or a bundle still has it, so that the digest stays; else packed anew",
        "image save",
    ),
    Command(
        "load",
        "load",
        "a name that a spec pins to another image is not given; a name without a registry is localhost/NAME",
        "image load",
    ),
    Command("push", "", _PUSH, "image push"),
    Command(
        "login",
        "login",
        "the registry is never left out, and may be a part of one (HOST/PREFIX); kept in the state directory, for root "
        "alone; Docker's own file is used where `registries.authfile` names it",
    ),
    Command("logout", "logout", "one that is not logged in is an error; also `--all`"),
    Command("search", "", "not here: a registry has no search in the distribution specification"),
    Command("manifest", "digest", "`digest IMAGE` prints the reference with the digest that its tag has now"),
    Command(
        "trust",
        "verify",
        "cosign's signatures with a key, not Notary's; whose are asked for is in device.yaml (`trust`), and holds for "
        "all images that come in, where DOCKER_CONTENT_TRUST holds for one command; signing is cosign's",
    ),
    Command("compose", "apply", "a spec is what a Compose file is; `validate` translates its words"),
    Command(
        "checkpoint",
        "",
        "not here: a container is stopped and started, never frozen to disk; `pause` keeps it in memory",
    ),
    Command("context", "", "not here: the program works on this device; for another one, ssh"),
    Command("plugin", "", "not here: there are no drivers of volumes, networks or logs to plug in"),
    Command("system dial-stdio", "", "not here: the program works on this device; for another one, ssh"),
    Command("swarm", "", _SWARM),
    Command("node", "", _SWARM),
    Command("service", "", _SWARM),
    Command("stack", "", _SWARM),
    Command("config", "", f"{_SWARM}; `configs` in a spec are files that containers see"),
    Command("secret", "", f"{_SWARM}; files of the device are mounted with `configs` or a bind"),
)


def instead(words: tuple[str, ...]) -> str:
    """What to say to somebody who typed a command of Docker's that is no verb here; "" where it is none of Docker's."""
    name = " ".join(words)
    found = [c for c in COMMANDS if name and name in (c.name, c.noun)]
    found += [c for c in COMMANDS if name and c.name.startswith(f"{name} ")]
    if not found:
        return ""
    ours, says = found[0].ours, found[0].says
    return f"here: reconciler {ours} ({says})" if ours else says


def table() -> str:
    """The table of docs/docker.md."""
    rows = ["| Docker's command | Here | Differences |", "|---|---|---|"]
    for command in COMMANDS:
        docker = " or ".join(f"`docker {name}`" for name in (command.name, command.noun) if name)
        here = f"`reconciler {command.ours}`" if command.ours else "-"
        rows.append(f"| {docker} | {here} | {command.says or 'none'} |")
    return "\n".join(rows)
