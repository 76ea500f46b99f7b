"""Rounds of faults, one after another, for a given time."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from .phases import SWEEP_PHASES, TRAINING_PHASES
from .plans import Plan, plan_round
from .rounds import Happened, Reference, Round, Setting, make_reference
from .tally import Tally

__all__ = ["Soak"]


class Soak:
    """A soak in a folder of its own.

    Attributes:
        folder: The folder.
        tally: What has happened so far, of rounds that are finished.
    """

    def __init__(self, setting: Setting, folder: Path, say: Callable[[str], None]) -> None:
        """
        Args:
            setting: What is run.
            folder: Where; what an earlier soak left there is removed, and so is a round that has
                lost nothing.
            say: Is given a line for each thing that happens.
        """
        self.tally = Tally()
        self._setting = setting
        self.folder = folder
        self._say = say
        self._references: dict[int, Reference] = {}

    def reference(self, num_processes: int) -> Reference:
        """The undisturbed run of so many processes, made at the first call."""
        if num_processes not in self._references:
            self._say(f"Reference of {_processes(num_processes)}: training and sweep, no fault.")
            folder = self.folder / f"reference_{num_processes}" / "training"
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            made = make_reference(self._setting, folder, num_processes)
            self._references[num_processes] = made
            for phases, took in ((TRAINING_PHASES, made.training), (SWEEP_PHASES, made.sweep)):
                parts = ", ".join(f"{phase} {took.phases[phase]:.1f} s" for phase in phases)
                self._say(f"  {parts}")
        return self._references[num_processes]

    def play(self, seed: int, first: int, processes: Sequence[int], deadline: float) -> None:
        """Plays rounds until the time is up.

        Args:
            seed: Of everything random.
            first: Number of the first round, from 0.
            processes: Which numbers of processes to train with.
            deadline: On the clock of ``time.monotonic``; a round that is under way then is finished
                without further faults.
        """
        number = first
        while time.monotonic() < deadline:
            plan = plan_round(seed, number, processes)
            self.play_round(number, plan, Random(f"{seed} round {number}"), deadline)
            number += 1

    def play_round(self, number: int, plan: Plan, rng: Random, deadline: float) -> list[str]:
        """Plays one round; returns what it has lost. Its folder is kept if that is anything."""
        reference = self.reference(plan.num_processes)
        folder = self.folder / f"round_{number:03d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._say(f"Round {number}, {_processes(plan.num_processes)}:")

        def report(happened: Happened) -> None:
            status = "" if happened.status is None else f", exit status {happened.status}"
            detail = f" ({happened.detail})" if happened.detail else ""
            self._say(f"  {happened.phase}: {happened.name}{detail}{status}")

        played = Round(
            self._setting,
            reference,
            folder / "training",
            plan,
            rng,
            report,
            lambda: time.monotonic() >= deadline,
        )
        played.play()
        self.tally.add(
            [(plan.num_processes, each.phase, each.name) for each in played.happened],
            bool(played.losses),
            played.repeated,
        )
        for loss in played.losses:
            self._say(f"  LOST: {loss}")
        if played.losses:
            self._say(f"  Kept in {folder}.")
        else:
            self._say(f"  Nothing lost; {played.repeated} iterations were done again.")
            shutil.rmtree(folder)
        return played.losses


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
