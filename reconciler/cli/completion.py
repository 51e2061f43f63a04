"""The verb completion, and what the shells' scripts ask on every press of the Tab key.

The scripts know nothing: they hand over the words of the line and show what comes back, a candidate per line with its
description after a tab, or `:files` or `:directories` for the shell's own names. So a new verb or option is completed
as soon as it exists. What is asked for here must come within tens of milliseconds and never as an error: it is read
from disk, by the quickest way, and what can't be read is no candidate.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconciler.cli.arguments import RUN, STATE, kinds_of

COMPLETE: Final = "__complete"  # the verb that the scripts use; people never see it
_FILES: Final = "files"
_DIRECTORIES: Final = "directories"


@dataclass(frozen=True, slots=True)
class Asked:
    """What may stand at the end of the line: fixed `words` with descriptions, and names of these `kinds`.

    `start` is what of the last word is there already and no part of the name (`--state=`); `places` are the values of
    --state and --run.
    """

    words: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    start: str = ""
    places: dict[str, str] = field(default_factory=dict)


def completion(args: argparse.Namespace) -> int:
    """Print the script that makes a shell complete this program's command lines."""
    sys.stdout.write(_SCRIPTS[args.shell])
    return 0


def complete(words: Sequence[str]) -> int:
    """Print the candidates for the last of `words`, the arguments of this program as far as they are typed."""
    from reconciler.cli.main import build_parser
    from reconciler.errors import ReconcilerError

    last = words[-1] if words else ""
    try:
        wanted = asked(build_parser(), words[:-1], last)
        for word, text in wanted.words:
            if word.startswith(last):
                print(f"{word}\t{_line(text)}")
        for name, text in _names(wanted, last.removeprefix(wanted.start)):
            print(f"{wanted.start}{name}\t{_line(text)}" if not name.startswith(":") else name)
        sys.stdout.flush()
    except (ReconcilerError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # whoever presses Tab is in the middle of a line: there is no place for a message
    return 0


def _line(text: str) -> str:
    """A description on one line, without anything that could control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


# --- what may come -------------------------------------------------------------------------------------------------


def asked(parser: argparse.ArgumentParser, before: Sequence[str], last: str) -> Asked:
    """What may come after the words `before`, where `last` is what is typed of it. Pure."""
    places = {"--state": STATE, "--run": RUN}
    pending: argparse.Action | None = None
    positional, options = 0, True
    for word in before:
        if pending is not None:
            places |= {name: word for name in pending.option_strings if name in places}
            pending = None
            continue
        if options and word == "--":
            options = False
            continue
        if options and word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            action = parser._option_string_actions.get(name)
            if action is not None and action.nargs != 0:
                if not equals:
                    pending = action
                elif name in places:
                    places[name] = value
            continue
        verbs = _verbs(parser)
        if verbs is not None:
            if word not in verbs.choices:
                return Asked()
            parser = verbs.choices[word]
            continue
        action = _positional(parser, positional)
        if action is not None and action.nargs == argparse.REMAINDER:
            return Asked()  # a command inside a container: not ours to know
        positional += 1
    if pending is not None:
        return _values(pending, "", places)
    if options and last.startswith("-"):
        name, equals, _ = last.partition("=")
        action = parser._option_string_actions.get(name)
        if equals:
            return _values(action, f"{name}=", places) if action is not None else Asked()
        return Asked(words=tuple(_options(parser)), places=places)
    verbs = _verbs(parser)
    if verbs is not None:
        texts = {choice.dest: choice.help or "" for choice in verbs._choices_actions}
        return Asked(words=tuple((verb, texts.get(verb, "")) for verb in verbs.choices), places=places)
    action = _positional(parser, positional)
    return _values(action, "", places) if action is not None else Asked()


def _verbs(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser] | None":
    return next((item for item in parser._actions if isinstance(item, argparse._SubParsersAction)), None)


def _positional(parser: argparse.ArgumentParser, number: int) -> argparse.Action | None:
    """The action that the positional argument `number` (from 0) belongs to."""
    actions = [action for action in parser._actions if not action.option_strings]
    for action in actions:
        if action.nargs in ("*", "+", argparse.REMAINDER) or number == 0:
            return action
        number -= 1
    return None


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        for option in action.option_strings[-1:]:
            yield option, action.help or ""


def _values(action: argparse.Action, start: str, places: dict[str, str]) -> Asked:
    if action.choices is not None:
        words = tuple((f"{start}{choice}", "") for choice in action.choices)
        return Asked(words=words, start=start, places=places)
    return Asked(kinds=kinds_of(action), start=start, places=places)


def _names(wanted: Asked, typed: str) -> Iterator[tuple[str, str]]:
    if not wanted.kinds:
        return
    from reconciler.cli.names import names_of

    for kind in wanted.kinds:
        if kind in (_FILES, _DIRECTORIES):
            yield f":{kind}", ""
            continue
        for name, text in sorted(names_of(kind, wanted.places["--state"], wanted.places["--run"]).items()):
            if name.startswith(typed) and name.isprintable() and not set(name) & set(" '\"\\$`"):
                yield name, text


# --- the scripts ---------------------------------------------------------------------------------------------------

_BASH: Final = r"""# bash completion for reconciler; to have it: source <(reconciler completion bash)
_reconciler() {
    local line="${COMP_LINE:0:COMP_POINT}" word text what cur breaks cut=
    local -a words found
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur="${words[-1]}"
    # readline replaces only what stands after the last of these characters
    breaks="${COMP_WORDBREAKS//[^:=@]/}"
    [[ -n $breaks ]] && cut="${cur%"${cur##*[$breaks]}"}"
    COMPREPLY=()
    while IFS=$'\t' read -r word text; do
        case $word in
        :files | :directories)
            compopt -o filenames 2>/dev/null
            [[ $word == :files ]] && what=-f || what=-d
            mapfile -t found < <(compgen $what -- "${cur#"$cut"}")
            COMPREPLY+=("${found[@]}")
            ;;
        ?*) COMPREPLY+=("${word#"$cut"}") ;;
        esac
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _reconciler reconciler
"""

_ZSH: Final = r"""#compdef reconciler
# zsh completion for reconciler; to have it: source <(reconciler completion zsh), after compinit
_reconciler() {
    local line
    local -a lines names
    lines=("${(@f)$("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${lines[@]}"; do
        case $line in
        :files) _files ;;
        :directories) _files -/ ;;
        ?*) names+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
        esac
    done
    (( $#names )) && _describe reconciler names
}
if [[ ${funcstack[1]} == _reconciler ]]; then
    _reconciler "$@"
else
    compdef _reconciler reconciler
fi
"""

_FISH: Final = r"""# fish completion for reconciler; to have it: reconciler completion fish | source
function __reconciler_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    for line in ($before[1] __complete $before[2..-1] "$current" 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path "$current"
            case :directories
                __fish_complete_directories "$current"
            case '*'
                echo $line
        end
    end
end
complete -c reconciler -f -a '(__reconciler_complete)'
"""

_SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
