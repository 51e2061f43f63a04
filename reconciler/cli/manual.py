"""docs/cli.md, generated from the parser: options can't be documented wrongly, prose is written here by hand.

Run by `make docs`; a test fails when the file is stale. Imports nothing but the parser.
"""

import argparse
from collections.abc import Mapping
from typing import Final

from reconciler.cli.main import build_parser

_HEAD: Final = """\
# reconciler(8)

The options below are generated from the program (`make docs`); do not edit them here.

## NAME

reconciler - keep the containers of this device equal to a directory or a git branch of specs

## SYNOPSIS

    reconciler VERB [OPTIONS] [ARGUMENTS]

## DESCRIPTION

`reconciler agent` is the program that runs all the time. It reads specs (see [spec.md](spec.md)), looks at what the
disk and the kernel really show, and does what takes the one to the other; then it waits for the next change.
Every other verb reads, or asks the running agent; those that change something do the work themselves where no
agent runs.

A container is called `APP/CONTAINER`; every verb that takes a name also takes the start of an id, as long as it is
unambiguous. A volume is called `APP/VOLUME`.

`cp` takes CONTAINER:PATH or a local path (one that begins with `/` or `.`, or has no colon), with Docker's rules: into
a directory that is there, over a file that is there, else under the new name, and only what is in a directory where
SOURCE ends in `/.`. `-` is a tar archive on standard input or output. Files that come out belong to whoever copies them
and have no set-uid bits, files that go in belong to root; with `-a`, and in archives, owners stay as they are. A
container that does not run is looked at, and written to, in a mount of its own. What the kernel makes up (`/proc`,
`/sys`) is not copied.

What `exec` runs begins at NAME, and what `run` runs at IMAGE: options of the verb itself stand before it. Each `exec`
is two events (`events --filter event=exec`): with user and command before it begins, and with the exit code at its end.
The command line is kept as it is: give a secret to `-e` or to standard input, which are not.

## CONTAINERS BY HAND

`run` and `create` make an *ad-hoc* container: one that no spec declares, called by a plain NAME. It is desired state
like any other, durable on this device: the loop starts it again as its restart policy says, also after a reboot, and
neither a commit nor garbage collection takes it away; `rm` does, or its own end with `--rm`. It keeps its id, its
files and its log from start to start, until it is removed. All of them share one network, in which they find each
other by name, and one app, `adhoc`, which no spec may be called. Options and exit codes are Docker's, with these
differences:

- A registry's host is never left out. A tag (`latest` where there is none) means what it means here already, by a pull
  or by a container that was made from it; where that is nothing the registry is asked, with `--pull always` in any
  case, with `never` in none. Its digest is printed and kept. With `--bundle LAYOUT` the image may also be a name in
  that OCI layout; a tag alone, as most layouts have, is kept as localhost/DIRECTORY:TAG.
- The restart policy is `no` unless `--restart` says otherwise. `always` is Docker's `unless-stopped`, and
  `on-failure` comes back after a reboot too. What was running with `no` when the device went down stays down.
- `--memory` without `--memory-swap` means no swap. Named volumes are those of the app `adhoc`. `-v /path` makes
  an anonymous one: `run --rm` and `rm -v` take it away with the container, unless another one mounts it, and so does
  `volume prune`. What an image declares as a VOLUME is a part of the container instead. A path of the device that
  `-v` names and that is not there is made, a directory of root's; `--mount` makes none.
- Output passes through the container's log, also that of a terminal: `logs` has it, and who is slow holds up nobody.
  Without `-t`, the third interrupt leaves the container running.
- A start that fails is not tried again, and leaves nothing behind that was never made.
- A path of the device may be mounted, and a device or a capability given, whether or not the device's own file allows
  it, which is for commits; `/` and `/proc` are never mounted.
- `--network` is `bridge`, `host`, `none`, the name of a network that apps share, or `container:NAME`: the network of
  another container, ad-hoc or declared, with which it then stops and starts; `rm` of one that others joined wants `-f`.
- `--log-driver` is `file` (also as `json-file`), `journald` or `none`.

`rename` gives one another name while it runs: its process, its id, its files and its address stay, its siblings find it
by the new name at once, and no longer by the old one. The title of its shim, and the journal's name for it, follow when
it is started again.

`-i` keeps standard input open, without it it is the null device; `-t` gives the container a terminal of its own, whose
window follows yours. `run -i` closes the container's standard input where yours ends; with `-d` it stays open for
`attach`, of which there may be several at once. On a terminal ctrl-p ctrl-q (`--detach-keys`) leaves the container
running, and so does a signal to the program; everywhere else signals go on to the container (`--sig-proxy`). `attach`
shows what comes from now on, needs no agent, and ends as the container ends. Only who asked for a terminal gets a
container's control characters on the own one.

The same verbs do the sane thing to *declared* containers, and say what the loop does next. `stop` holds one: it stays
stopped, across reboots and newer versions, until `start` lets go of it; the newest version runs then. `restart`, and
`rm -f`, replace it once. `kill` and `pause` are the kernel's; a newer spec replaces what is paused. `rm`, `update`
and `rename` are refused with the place of the spec.

Where no agent runs, a verb does the work itself, for ad-hoc containers and for the app that it names. Nothing starts
again what ends after that.

Data goes to standard output, everything else to standard error. `-o json` prints one document with `apiVersion`, `kind`
and `items`, `-o yaml` the same in YAML, `-o jsonl` an item per line, `-o name` names only; keys are never renamed
within `reconciler/v1`. Times in JSON are RFC 3339 in UTC, sizes are bytes.

`--format` takes the part of Go's templates that people know from Docker: fields such as `{{.name}}`, in any case, with
Docker's names or those of `-o json`; `json`, `index`, `len`, `join`, `upper`, `lower`, `eq`, `ne`, `not`; `range`,
`if`, `else`, `end`; pipes. With `table ` before it, it makes a table, with `\\t` between the columns. `--filter` may be
given several times: one value of each key must match, of `label` all.

`ps -o wide` adds the id, the pid, the digest, and what the container's cgroup has counted: CPU is the average since its
program was started, in percent of one core, as ps(1) has it, MEM what it uses now, caches included, and PEAK the most
that it used, also of one that has ended. In JSON that is `usage`: `cpu` in cores, `cpu_seconds`, `memory`; null where
nothing runs; and `memory_peak`.

Whatever containers, images and specs have chosen (names, labels, log lines) is printed to a terminal with its control
characters as visible escapes. In tables and JSON that is so everywhere; `logs` and `--format` print it to a pipe as it
is.

"""

_TAIL: Final = """\
## EXIT STATUS

| Code | Meaning |
|---|---|
| 0 | success; nothing to do; converged |
| 1 | failure |
| 2 | only with `--detailed-exitcode`: changes are pending (`plan`) or were made (`apply`); and of `pin --check` |
| 3 | a spec or the device file is invalid |
| 5 | blocked: something holds it up (a lock, a guard, a taken port, a full disk) |
| 6 | it did not happen in time |
| 7 | verification failed: content does not match its digest or size |
| 8 | not found |
| 9 | the agent can't be reached, or permission is denied |
| 64 | the command line is wrong |
| 125, 126, 127, 128+n | `run`, `exec`: our failure, not executable, not found, signal n; else the command's own |
| 130, 141 | interrupted; the reader of a pipe went away |

## FILES

| Path | What |
|---|---|
| `/var/lib/reconciler` | state: images, layers, containers, volumes (`--state DIR`) |
| `/var/lib/reconciler/auth.json` | accounts that `login` keeps, for root alone |
| `/run/reconciler` | what a reboot may take away: sockets, exit records (`--run DIR`) |
| `/etc/reconciler/device.yaml` | what this device allows and is, see [settings.md](settings.md) (`--device FILE`) |

Instances with different state directories never meet: their bridges, cgroups and tables have different names.

## ENVIRONMENT

`NO_COLOR` and `TERM=dumb` turn colours off. `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are used as systemd
sets them. git is given what a person may have set for a proxy, a private certificate authority or an ssh agent, and
nothing else; helpers that keep credentials are given PATH, HOME and the proxy. `HTTP_PROXY`, `HTTPS_PROXY`,
`ALL_PROXY` and `NO_PROXY`, in small letters too, say the way to registries. `RECONCILER_FAILPOINT` is for tests.

## SIGNALS

`agent`: SIGTERM and SIGINT end it, containers go on running; SIGHUP has it look at everything at once, without waiting
for the back-off of earlier failures.

## EXAMPLES

    reconciler validate specs && reconciler plan specs
    reconciler agent --git https://git.example/fleet.git --branch main --path sites/lab
    reconciler logs -f --tail 20 web/page
    reconciler logs web --since 1h --grep 'error|warn' -i
    reconciler ps -a --filter status=exited --format 'table {{.Names}}\\t{{.Status}}'
    reconciler inspect --format '{{.NetworkSettings.IPAddress}}' web/page
    reconciler wait --for healthy web --timeout 2m && reconciler events -f --filter app=web
    reconciler exec -it web/db psql -U postgres
    reconciler cp web/db:/var/log/. ./logs && tar c conf | reconciler cp - web/db:/etc
    reconciler exec --state /srv/state -u 1000 web/db id
    reconciler volume ls && reconciler volume rm old-app/data
    reconciler run --rm registry.example/tools/box:1.37 date
    reconciler run -it --rm registry.example/tools/box:1.37 sh
    reconciler run -d --name web1 -p 8080:80 -v data:/data registry.example/web:2
    reconciler stop web1 && reconciler start web1 && reconciler rm -f web1
    reconciler stop --reason "disk is being replaced" web/db
    source <(reconciler completion bash)

## SEE ALSO

[spec.md](spec.md), [settings.md](settings.md), [operations.md](operations.md), [security.md](security.md)
"""


def manual() -> str:
    """The whole page."""
    parts = [_HEAD, "## VERBS\n"]
    verbs = _subparsers(build_parser())
    for name, parser in verbs.items():
        nested = _subparsers(parser)
        same = {action: inner.get_default("same_as") for action, inner in nested.items()}
        if any(same.values()):
            parts.append(_other_words(name, same))
        if nested and any(action.option_strings for action in parser._actions if action.dest != "help"):
            parts.append(_section(name, parser))
        for action, inner in nested.items():
            if not same[action]:
                parts.append(_section(f"{name} {action}", inner))
        if not nested:
            parts.append(_section(name, parser))
    parts.append(_PLACES)
    parts.append(_TAIL)
    return "\n".join(parts)


_PLACES: Final = """\
### Every verb

| Option | Meaning |
|---|---|
| `-h`, `--help` | the verb's own help |
| `--state DIR` | state directory (default /var/lib/reconciler) |
| `--run DIR` | run directory (default /run/reconciler) |
| `--device FILE` | the device's own file (default /etc/reconciler/device.yaml) |
| `--color WHEN` | colours: auto (only on a terminal, and not with `NO_COLOR`), always, never |
"""

_COMMON: Final = frozenset({"--help", "--state", "--run", "--device", "--color"})


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _other_words(noun: str, same: Mapping[str, str | None]) -> str:
    rows = [f"| `{noun} {action}` | `{verb}` |" for action, verb in same.items() if verb]
    return "\n".join([f"### {noun}", "", "| Docker's word | The same as |", "|---|---|", *rows, ""])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"### {name}", "", parser.description or "", "", f"    {_usage(name, parser)}", ""]
    rows = []
    for action in parser._actions:
        if _COMMON & set(action.option_strings):
            continue
        label = _label(action)
        meaning = (action.help or "").replace("|", "\\|")
        if action.choices and action.option_strings:
            meaning += f": {', '.join(str(choice) for choice in action.choices)}"
        rows.append(f"| {label} | {meaning} |")
    if rows:
        lines += ["| Option or argument | Meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _label(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else (action.dest or "").upper()
    if not action.option_strings:
        return f"`{metavar}`"
    takes = "" if action.nargs == 0 else f" {metavar if action.metavar else 'FORMAT'}"
    return (
        ", ".join(f"`{option}`" for option in action.option_strings[:-1])
        + (", " if len(action.option_strings) > 1 else "")
        + f"`{action.option_strings[-1]}{takes}`"
    )


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    words = [f"reconciler {name}"]
    if any(action.option_strings and not _COMMON & set(action.option_strings) for action in parser._actions):
        words.append("[OPTIONS]")
    for action in parser._actions:
        if action.option_strings or isinstance(action, argparse._SubParsersAction):
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        match action.nargs:
            case "?":
                words.append(f"[{metavar}]")
            case "+":
                words.append(f"{metavar}...")
            case "*":
                words.append(f"[{metavar}...]")
            case argparse.REMAINDER:
                words.append(f"{metavar}...")
            case _:
                words.append(metavar)
    return " ".join(words)
