#!/usr/bin/env python
"""Kills, damages and resumes trainings and sweeps, and compares them with undisturbed ones.

    python tests/soak/soak.py --minutes 20 --markdown output/soak/table.md

Each round trains and sweeps in a fresh folder. Faults happen at random moments: signals to some or
all of its processes, damaged files, a full disk. In the end, weights, losses and results must equal
those of the same commands without faults, to the bit. For Linux, on the CPU.
"""

import argparse
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from random import Random

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from faults import PHASES, Attack, attacks_on_sweep, attacks_on_training, dealt
from observed_run import Observer, Run, iterations_of
from rounds import ROOT, Reference, Round, Setting

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_on_input_error

ATTACKS_ON_TRAINING, ATTACKS_ON_SWEEP = 4, 3


class Soak:
    """Rounds of faults, one after another.

    Attributes:
        folder: The folder of all runs. A round that has lost nothing is removed from it.
        attacks: Number of each attack in finished rounds, by processes, phase and name.
        survived: The same in rounds that have lost nothing.
        rounds: Number of finished rounds.
        equal_rounds: Number of rounds that have lost nothing.
        repeated: Number of iterations that were done again.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        """
        Args:
            setting: What is run.
            folder: The folder of all runs; what an earlier soak has left there is removed.
        """
        self.folder = folder
        self.attacks: Counter = Counter()
        self.survived: Counter = Counter()
        self.rounds = self.equal_rounds = self.repeated = 0
        self._setting = setting
        self._references: dict[int, Reference] = {}

    def reference(self, num_processes: int) -> Reference:
        """The undisturbed training and sweep of some processes, run at the first call.

        Raises:
            InputError: If it fails.
        """
        if num_processes in self._references:
            return self._references[num_processes]
        print(f"Reference of {num_processes} process(es): training and sweep, no fault", flush=True)
        folder = self.folder / f"reference_{num_processes}" / "training"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        durations = {}
        for sweeps, what in ((False, "training"), (True, "sweep")):
            log = folder.with_name(f"{what}.log")
            run = Run(self._setting.command(folder, num_processes, sweeps), log)
            try:
                durations |= Observer(run, folder, sweeps).durations()
                if run.status:
                    raise InputError(
                        f"the {what} ends with status {run.status} even without faults; its output "
                        f"is in {log}"
                    )
                if left := run.wait_until_gone():
                    raise InputError(f"processes are left without any fault: {left}")
            finally:
                run.end()
        self._references[num_processes] = Reference(folder, durations)
        return self._references[num_processes]

    def play(self, seed: int, first: int, processes: Sequence[int], deadline: float) -> None:
        """Plays rounds until the time is up.

        Args:
            seed: Seed of everything random.
            first: Number of the first round, from 0.
            processes: Numbers of processes, in turn.
            deadline: A time of ``time.monotonic``. A round that has begun before it is finished,
                without further faults.
        """
        hands = {
            n: (
                dealt(attacks_on_training(n), ATTACKS_ON_TRAINING, Random(f"{seed} training {n}")),
                dealt(attacks_on_sweep(n), ATTACKS_ON_SWEEP, Random(f"{seed} sweep {n}")),
            )
            for n in processes
        }
        for number in count():
            if time.monotonic() >= deadline:
                return
            num_processes = processes[number % len(processes)]
            training, sweep = (next(hand) for hand in hands[num_processes])
            if number >= first:
                rng = Random(f"{seed} round {number}")
                self.play_round(number, num_processes, training, sweep, rng, deadline)

    def play_round(
        self,
        number: int,
        num_processes: int,
        training: Sequence[Attack],
        sweep: Sequence[Attack],
        rng: Random,
        deadline: float,
    ) -> list[str]:
        """Plays a round; returns what it has lost, and keeps its folder if that is anything."""
        reference = self.reference(num_processes)
        folder = self.folder / f"round_{number:03d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"Round {number} of {num_processes} process(es):", flush=True)
        played = Round(self._setting, reference, folder / "training", num_processes, rng, deadline)
        played.play(training, sweep)
        iterations = [values["iteration"] for values in iterations_of(played.folder)]
        repeated = len(iterations) - len(set(iterations))
        happened = [(num_processes, phase, name) for phase, name in played.happened]
        self.rounds += 1
        self.repeated += repeated
        self.attacks.update(happened)
        if played.losses:
            print(*(f"  LOST: {loss}" for loss in played.losses), sep="\n")
            print(f"  Kept in {folder}.", flush=True)
        else:
            self.equal_rounds += 1
            self.survived.update(happened)
            print(f"  Nothing lost; {repeated} iterations were done again.", flush=True)
            shutil.rmtree(folder)
        return played.losses

    def table(self) -> str:
        """A Markdown table of phases and faults, and the totals."""
        lines = [
            "| processes | phase | fault | times | survived |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key in sorted(self.attacks, key=lambda key: (key[0], PHASES.index(key[1]), key[2])):
            cells = [*key, self.attacks[key], self.survived[key]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        total, survived = self.attacks.total(), self.survived.total()
        lines += [
            f"| | | **all** | **{total}** | **{survived}** |",
            "",
            f"{self.rounds} rounds with {total} faults: {self.equal_rounds} ended with the "
            "weights, losses and results of the uninterrupted run, to the bit; "
            f"{self.repeated} iterations were done again.",
        ]
        return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="no round begins after them")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--first-round", type=int, default=0, help="to repeat that round")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        choices=[1, 2],
        help="rounds of one process, of two, or of both (default)",
    )
    parser.add_argument(
        "--config-file",
        default=str(ROOT / "tests/soak/snnet_soak.py"),
        metavar="FILE",
        help="default: a tiny detector on generated scenes",
    )
    parser.add_argument("--folder", default="output/soak", help="default: output/soak")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table to this file")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_intermixed_args()


def main() -> int:
    """Soaks, prints what happens and the table; returns 1 if anything was lost."""
    args = arguments()
    # Without this, a program that is asked to end would leave a training behind.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    with exit_on_input_error():
        overrides = ("train.device=cpu", *args.opts)
        config = load_config(args.config_file, list(overrides))
        setting = Setting(args.config_file, overrides, int(config.train.max_iter))
        soak = Soak(setting, Path(args.folder))
        print(f"Seed {args.seed}, {args.minutes:g} minutes", flush=True)
        deadline = time.monotonic() + 60 * args.minutes
        try:
            soak.play(args.seed, args.first_round, args.processes, deadline)
        except KeyboardInterrupt:
            print("Interrupted: the table is of the rounds that were finished.")
        table = soak.table()
        print(f"\n{table}", end="")
        if args.markdown:
            Path(args.markdown).parent.mkdir(parents=True, exist_ok=True)
            Path(args.markdown).write_text(table, encoding="utf-8")
    return int(soak.rounds > soak.equal_rounds)


if __name__ == "__main__":
    sys.exit(main())
