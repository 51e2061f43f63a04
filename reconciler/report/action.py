"""What kind of action a step is: the word that metrics and events use. Pure."""

from typing import Final, assert_never

from reconciler.plan.steps import (
    ChangeNetwork,
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    ForgetContainer,
    LimitVolume,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)

ACTIONS: Final = ("pull", "create", "start", "stop", "remove", "restart", "update", "network", "volume", "gc")


def action_of(step: Step) -> str:
    """The action that a step counts as, or "" for bookkeeping."""
    match step:
        case PullImage():
            return "pull"
        case CreateContainer():
            return "restart" if step.restarts else "create"
        case StartContainer():
            return "start"
        case StopContainer():
            return "stop"
        case RemoveContainer():
            return "remove"
        case UpdateContainer():
            return "update"
        case ConfigureNetwork() | ChangeNetwork() | RemoveNetwork():
            return "network"
        case CreateVolume() | LimitVolume():
            return "volume"
        case CollectGarbage():
            return "gc"
        case RecordExit() | ForgetContainer():
            return ""
        case _:
            assert_never(step)
