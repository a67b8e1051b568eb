"""The table of all trials."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tabulate import tabulate

from bench.kills.scene import Scene
from bench.kills.trial import Trial

HEADERS = [
    *("command", "signal", "sent to", "hits", "at, of its usual duration", "groups recorded before", "lost"),
    *("cells measured again", "processes", "worktrees", "files", "next start good"),
]
ABOUT = """# Commands killed at random moments

`{command}` kills a command at a random moment of its usual duration, starts it again at once (a run with a manifest by
`dynbench run --resume`, everything else by the same command), and looks at what is left afterwards.

- *groups recorded before*: groups of which at least one cell was in `cells.jsonl` when the next start began; of
  `train`, networks that were finished. *lost*: of these, the ones of which a cell or its samples could not be read
  afterwards, or whose weights or card were gone or others.
- *processes*: that were still there {settle:.0f} s after the next start had ended. *worktrees*: registered in the
  repository of `check`. *files*: files and folders, in the folder for temporary files, the cache, the run directory or
  beside an output, that a command nobody disturbed does not leave.
- *next start good*: it ended with its usual exit code, all its files are there, nobody printed a traceback, and the
  history database is sound and has every run and check.

A command that ended before its signal was sent does not count, and its duration is the usual one from then on.
"""


def readme(trials: Sequence[Trial], scene: Scene, command: str, wanted: int, settle_s: float) -> str:
    """Everything found, as Markdown."""
    hits = [trial for trial in trials if trial.landed]
    kills = sum(trial.signal == "SIGKILL" for trial in hits)
    state = "" if kills >= wanted else f" of {wanted} wanted (unfinished)"
    of_others = Counter(trial.signal for trial in hits if trial.signal != "SIGKILL")
    others = ", ".join(f"{number} x {name}" for name, number in sorted(of_others.items())) or "no other signal"
    usual = "; ".join(f"`{name}` {seconds:.1f} s" for name, seconds in scene.seconds.items())
    parts = [
        ABOUT.format(command=command, settle=settle_s),
        f"{kills} x SIGKILL{state}, {others}. Usual durations, in the end: {usual}.",
        tabulate(_rows(hits), HEADERS, tablefmt="github"),
    ]
    if wrong := [trial for trial in hits if not trial.clean or trial.measured_again]:
        parts += ["## What was found", "\n".join(f"- {_told(trial)}" for trial in wrong)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _rows(hits: Sequence[Trial]) -> list[list[object]]:
    by = defaultdict(list)
    for trial in hits:
        by[trial.command, trial.signal, trial.to].append(trial)
    return [[*key, *_row(by[key])] for key in sorted(by)] + ([["all", "", "", *_row(hits)]] if hits else [])


def _row(hits: Sequence[Trial]) -> list[object]:
    moments = sorted(trial.fraction for trial in hits)
    at = f"{moments[0]:.2f} to {moments[-1]:.2f}, median {moments[len(moments) // 2]:.2f}"
    return [
        len(hits),
        at,
        *(sum(t.recorded for t in hits), sum(len(t.lost) for t in hits), sum(len(t.measured_again) for t in hits)),
        *(sum(len(t.processes) for t in hits), sum(len(t.worktrees) for t in hits), sum(len(t.files) for t in hits)),
        f"{sum(t.next_ok for t in hits)} of {len(hits)}",
    ]


def _told(trial: Trial) -> str:
    what = {
        "lost": trial.lost,
        "measured again": trial.measured_again,
        "processes": trial.processes,
        "worktrees": trial.worktrees,
        "files": trial.files,
        "missing": trial.missing,
        "": trial.faults,
    }
    found = "; ".join(f"{name} {', '.join(texts)}".strip() for name, texts in what.items() if texts)
    at = f"trial {trial.index}, `{trial.command}`, {trial.signal} to the {trial.to} at {trial.fraction:.2f}"
    return f"{at}: {' '.join(found.split()) or f'the next start ended with {trial.next_exit_code}'}"
