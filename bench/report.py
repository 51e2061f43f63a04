"""What a run found: rows with ours, the peers, the ratio and the target, as a table and as JSON.

Values in, text out. A row without a target is told for its own sake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.measure import Figure
from bench.targets import TARGETS, Against, AtMost, Best, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured. `name` finds its targets; `peers` are in the unit of `ours`, by "program version".

    `yardsticks` are measured for comparison but not competed with: a floor, or something that does less. Smaller is
    better unless `more` says otherwise.
    """

    name: str
    what: str
    unit: str
    ours: Figure | None
    peers: Mapping[str, Figure] = field(default_factory=dict)
    yardsticks: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()
    more: bool = False

    @property
    def targets(self) -> tuple[Target, ...]:
        return TARGETS.get(self.name, ())

    def ratio(self, theirs: Figure) -> float | None:
        """Ours through theirs."""
        return self.ours.median / theirs.median if self.ours is not None and theirs.median else None

    def rival(self, target: Target) -> str | None:
        """The peer that a target speaks of: the best, or the one it names; None where it is not here."""
        match target:
            case AtMost():
                return None
            case Best():
                return min(self.peers, key=lambda name: self.peers[name].median, default=None)
            case Against():
                return next((name for name in self.peers if name.split()[0] == target.peer), None)

    def verdict(self, target: Target) -> bool | None:
        """Whether the target is met; None where it can't be told."""
        if self.ours is None:
            return None
        if isinstance(target, AtMost):
            return self.ours.median <= target.limit
        rival = self.rival(target)
        ratio = self.ratio(self.peers[rival]) if rival is not None else None
        return None if ratio is None else ratio <= target.factor


def text(rows: Sequence[Row]) -> str:
    """The table for people: a line for ours, one for each peer, the target on the line it is about."""
    lines: list[Sequence[str]] = []
    for row in rows:
        lines.append((row.what, "ours", _figure(row.ours, row.unit), "", *_absolute(row)))
        for name, figure in {**row.peers, **row.yardsticks}.items():
            ratio = row.ratio(figure)
            told = [target for target in row.targets if row.rival(target) == name and name in row.peers]
            said = [str(target) for target in told]
            verdicts = [_word(row.verdict(target)) for target in told]
            times = f"{ratio:.2f}x" if ratio is not None else ""
            lines.append(("", name, _figure(figure, row.unit), times, "; ".join(said), "; ".join(verdicts)))
        for target in row.targets:
            if not isinstance(target, AtMost) and row.rival(target) is None:
                lines.append(
                    (
                        "",
                        target.peer if isinstance(target, Against) else "peer",
                        "not here",
                        "",
                        str(target),
                        "?",
                    )
                )
    head = ("MEASURED", "BY", "MEDIAN [MIN]", "RATIO", "TARGET", "MET")
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    shown = ["   ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *lines)]
    notes = [f"{row.what}: {note}" for row in rows for note in row.notes]
    return "".join(f"{line}\n" for line in (*shown, *(f"* {note}" for note in dict.fromkeys(notes))))


def _absolute(row: Row) -> tuple[str, str]:
    told = [target for target in row.targets if isinstance(target, AtMost)]
    said = "; ".join(f"{target} {row.unit}".strip() for target in told)
    return said, "; ".join(_word(row.verdict(target)) for target in told)


def _word(verdict: bool | None) -> str:
    return {True: "yes", False: "NO", None: "?"}[verdict]


def _figure(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return "-"
    median = f"{_number(figure.median)}"
    return f"{median} [{_number(figure.best)}] {unit}" if len(figure.values) > 1 else f"{median} {unit}"


def _number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def document(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    """The same values as JSON."""
    items = [
        {
            "name": row.name,
            "what": row.what,
            "unit": row.unit,
            "ours": _values(row.ours),
            "peers": {name: _values(figure) for name, figure in row.peers.items()},
            "yardsticks": {name: _values(figure) for name, figure in row.yardsticks.items()},
            "ratios": {name: row.ratio(figure) for name, figure in {**row.peers, **row.yardsticks}.items()},
            "targets": [{"target": str(target), "met": row.verdict(target)} for target in row.targets],
            "notes": list(row.notes),
        }
        for row in rows
    ]
    return {"version": 1, **about, "rows": items}


def _values(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    return {"median": figure.median, "min": figure.best, "values": list(figure.values)}
