"""Progress of a running study: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flagformer.lab.study.design import Run, Study
from flagformer.lab.study.directory import trial_directory
from flagformer.lab.study.executor import Failure
from flagformer.lab.study.read_results import last_line

HEARTBEAT = 30.0  # seconds between plain lines while no trial ends
REFRESH = 0.5  # seconds between reads of the logs


class Progress:
    """Shows running, finished and failed trials; a context manager around the run.

    Args:
        kept: the number of trials that were finished by earlier runs.
    """

    def __init__(self, study: Study, directory: Path, kept: int, console: Console) -> None:
        self.directory, self.console = directory, console
        self.name, self.total, self.steps = study.name, len(study.runs), study.train.steps
        self.finished, self.failed = kept, 0
        self.running: dict[str, Run] = {}
        self.lines: dict[str, dict] = {}
        self.first_steps: dict[str, int] = {}
        self.steps_here = 0
        self.began = self.last_look = self.last_word = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        self.say(
            f"{self.name}: {self.total} trials, {self.finished} finished before, "
            f"{self.total - self.finished} to run"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """Print a permanent line."""
        self.last_word = time.monotonic()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, run: Run) -> None:
        """Report that a trial has started."""
        self.running[run.trial.id] = run
        self.first_steps[run.trial.id] = int(
            last_line(trial_directory(self.directory, run.trial.id)).get("step", 0)
        )

    def again(self, run: Run, word: str) -> None:
        """Report that a trial was lost and will be restarted."""
        del self.running[run.trial.id]
        self.say(f"{run.label}: {word}")

    def ended(self, run: Run, failure: Failure | None, word: str) -> None:
        """Report that a trial has ended, with its result `word`."""
        del self.running[run.trial.id]
        line = last_line(trial_directory(self.directory, run.trial.id))
        self.steps_here += max(0, int(line.get("step", 0)) - self.first_steps[run.trial.id])
        self.failed += failure is not None
        self.finished += failure is None
        self.say(f"[{self.finished}/{self.total}] {run.label}: {word}")

    def tick(self) -> None:
        """Update the display; reads the logs at most every REFRESH seconds."""
        now = time.monotonic()
        if now - self.last_look < REFRESH:
            return
        self.last_look = now
        self.lines = {key: last_line(trial_directory(self.directory, key)) for key in self.running}
        if self.live:
            self.live.update(self._table(now), refresh=True)
        elif now - self.last_word > HEARTBEAT:
            self.say("; ".join(self._words(run) for run in self.running.values()))

    def _words(self, run: Run) -> str:
        line = self.lines.get(run.trial.id, {})
        return f"{run.label}: step {line.get('step', 0)} of {self.steps}, loss {_loss(line)}"

    def _table(self, now: float) -> Group:
        table = Table.grid(padding=(0, 2))
        for run in self.running.values():
            line = self.lines.get(run.trial.id, {})
            step = int(line.get("step", 0))
            bar = ProgressBar(total=self.steps, completed=step, width=24)
            table.add_row(Text(run.label), bar, f"step {step}/{self.steps}", f"loss {_loss(line)}")
        head = f"{self.finished}/{self.total} finished, {len(self.running)} running, {self.failed} failed"
        return Group(Text(f"{head}; {_clock(now - self.began)} elapsed{self._left(now)}"), table)

    def _left(self, now: float) -> str:
        here = {key: int(line.get("step", 0)) for key, line in self.lines.items() if key in self.running}
        done = self.steps_here + sum(max(0, step - self.first_steps[key]) for key, step in here.items())
        waiting = self.total - self.finished - self.failed - len(self.running)
        left = waiting * self.steps + sum(self.steps - step for step in here.values())
        if done < self.steps // 4:
            return ""
        return f", about {_clock((now - self.began) * left / done)} left"


def _loss(line: dict) -> str:
    loss = line.get("loss")
    return f"{loss:.3f}" if isinstance(loss, float) else "-"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
