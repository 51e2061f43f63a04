"""Verbs about specs: validate, plan, apply."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reconciler.agent import client, reading
from reconciler.agent.requests import summary
from reconciler.cli.common import device_of, document, duration, layout_of, print_json
from reconciler.cli.console import Console
from reconciler.cli.scratch import scratch_directory
from reconciler.engine.network.foreign import ForwardBlocker
from reconciler.errors import BlockedError, InvalidSpecError, NotFoundError, ReconcilerError, TimedOutError
from reconciler.plan.risk import risk_of
from reconciler.plan.steps import CreateContainer, Plan, Step
from reconciler.report.status import STALE
from reconciler.report.tables import use_color
from reconciler.spec.marks import Problem


def validate(args: argparse.Namespace) -> int:
    """Print every error of all files; exit 0 if there is none, 3 otherwise."""
    from reconciler.source.directory import DirectorySource
    from reconciler.spec.load import load

    device = device_of(args)
    path = Path(args.path)
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or directory")
    source = DirectorySource(path.parent if path.is_file() else path)
    snapshot = source.snapshot()
    if snapshot.problem:
        raise InvalidSpecError(snapshot.problem)
    files = dict(snapshot.files)
    if path.is_file():
        if path.name not in files:
            raise InvalidSpecError(f"{path}: not a spec file", hint="specs are named *.yaml or *.yml")
        files = {path.name: files[path.name]}
    loaded = load(files, snapshot.read_config, terms=device.terms, defaults=device.defaults)
    errors = print_problems(loaded.problems, args)
    if args.output == "table":
        count = len(loaded.apps)
        print(f"{count} app{'s' if count != 1 else ''} valid, {errors} error{'s' if errors != 1 else ''}")
    return 3 if errors else 0


def print_problems(
    problems: tuple[Problem, ...], args: argparse.Namespace, *, document_too: bool = True
) -> int:
    """Print problems to standard error, or as a document; return how many are errors."""
    if args.output == "json" and document_too:
        items: list[Any] = [
            {
                "file": problem.mark.file,
                "line": problem.mark.line,
                "column": problem.mark.column,
                "severity": problem.severity,
                "message": problem.message,
                "hint": problem.hint,
            }
            for problem in problems
        ]
        print_json(document("ProblemList", items))
    else:
        color = use_color(sys.stderr, args.color, os.environ)
        for problem in problems:
            print(problem.render(color=color), file=sys.stderr)
    return sum(problem.severity == "error" for problem in problems)


def plan(args: argparse.Namespace) -> int:
    """Print the steps that an apply would take. Reads only: a branch is fetched into a directory that goes again."""
    layout, device = layout_of(args), device_of(args)
    described = reading.describe_source(layout, args)
    with ExitStack() as stack:
        repository = stack.enter_context(scratch_directory()) / "repository.git" if described["git"] else None
        source = reading.open_source(layout, described, repository=repository)
        intent, made = stack.enter_context(reading.planned(layout, device, source))
        errors = print_problems(intent.problems, args, document_too=False)
        warnings = reading.traffic_warnings(intent.desired)
        if args.output == "json":
            print_json(document("StepList", plan_items(made, intent.stale, warnings)))
        else:
            print_plan(made, intent.stale, warnings)
    if intent.source_stale:
        print(f"source: {intent.source_stale}", file=sys.stderr)
    if intent.source_problem:
        raise BlockedError(f"source: {intent.source_problem}")
    if intent.guard:
        raise BlockedError(intent.guard)
    if errors:
        return 3
    if args.detailed_exitcode:
        return 2 if made.steps else 0
    return 0


def print_plan(made: Plan, stale: Mapping[str, str], warnings: Sequence[ForwardBlocker] = ()) -> None:
    """The steps in order, then what is held up, be it that an app goes on in its older version, and what will not work
    although no step fails.
    """
    for step in made.steps:
        print(f"  {step}")
        for risk in _risk(step).values():
            print(f"    risk: {risk}")
    for item in made.blocked:
        name = f"{item.app}/{item.container}" if item.container else item.app
        print(f"  waiting: {name}: {item.reason}{f'; {item.hint}' if item.hint else ''}")
    for app, reason in sorted(stale.items()):
        print(f"  waiting: {app}: {STALE}{reason}")
    for warning in warnings:
        print(f"  warning: {warning}; {warning.hint}")
    print(f"{len(made.steps)} steps" if made.steps else "nothing to do")


def _risk(step: Step) -> dict[str, str]:
    risk = risk_of(step.desired.identity) if isinstance(step, CreateContainer) else ""
    return {"risk": risk} if risk else {}


def plan_items(made: Plan, stale: Mapping[str, str], warnings: Sequence[ForwardBlocker] = ()) -> list[Any]:
    """The plan as data: an object per step, then one per thing that waits, then one per warning."""
    steps: list[Any] = [
        {"action": type(step).__name__, "app": step.app or "", "text": str(step)} | _risk(step)
        for step in made.steps
    ]
    waiting = [
        {"action": "Blocked", "app": item.app, "container": item.container, "text": item.reason}
        for item in made.blocked
    ]
    held = [
        {"action": "Blocked", "app": app, "container": "", "text": STALE + reason}
        for app, reason in sorted(stale.items())
    ]
    warned = [
        {"action": "Warning", "app": "", "text": str(warning), "hint": warning.hint} for warning in warnings
    ]
    return steps + waiting + held + warned


def apply(args: argparse.Namespace) -> int:
    """Have the device brought to what the specs say, by the running agent or here and now."""
    layout = layout_of(args)
    timeout = duration(args.timeout, "--timeout")
    if client.running(layout):
        reading.refuse_other_source(layout, args)
        body = {
            "allow_empty": args.allow_empty,
            "wait": "converged" if args.wait else "tried",
            "timeout": timeout,
        }
        answer = client.request(layout, "POST", "/v1/reconcile", body, timeout=timeout + 10)
        return _outcome(answer, changed=bool(answer.get("changed")), detailed=args.detailed_exitcode)
    console = Console(stamps=False)
    turn = reading.apply_here(
        layout,
        device_of(args),
        lambda: reading.open_source(layout, reading.describe_source(layout, args)),
        console,
        allow_empty=args.allow_empty,
        wait=args.wait,
        timeout=timeout,
    )
    if turn is None:
        raise TimedOutError(f"apply: not finished after {args.timeout}", hint="run: reconciler status")
    return _outcome(
        summary(turn), changed=console.performed > console.failed, detailed=args.detailed_exitcode
    )


def _outcome(answer: dict[str, Any], *, changed: bool, detailed: bool) -> int:
    for item in answer["blocked"]:
        name = f"{item['app']}/{item['container']}" if item["container"] else item["app"]
        print(f"waiting: {name}: {item['reason']}")
    for app, reason in sorted(answer["stale"].items()):
        print(f"{app}: keeps running its last good spec: {reason}")
    if answer["problem"]:
        raise BlockedError(answer["problem"])
    if answer["errors"]:
        raise InvalidSpecError(
            f"{answer['errors']} errors in the specs; the apps they belong to are unchanged"
        )
    if answer["failures"]:
        app, failure = min(answer["failures"].items())
        raise ReconcilerError(f"{app}: {failure}", hint="run: reconciler status")
    if answer["blocked"]:
        raise BlockedError("not everything could be applied", hint="run: reconciler status")
    print("converged" if answer["converged"] else "applied")
    if not answer["converged"]:
        raise ReconcilerError("not converged yet", hint="run: reconciler status, or apply --wait")
    return 2 if detailed and changed else 0
