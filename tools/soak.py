#!/usr/bin/env python
"""Kills, damages and resumes trainings and sweeps for a while, and compares with undisturbed ones.

    python tools/soak.py --minutes 20 --markdown output/soak/table.md

Each round trains and sweeps in a fresh folder, hit by faults at random moments: signals to some or
all of its processes, damaged files, a full disk. When it is finished, weights, losses and results
must be to the bit those of the same commands without faults. On Linux, on the CPU.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.files import write_atomically
from snnet_vitdet.soak import PHASES, Setting, Soak

ROOT = Path(__file__).parent.parent


def read_setting(args):
    """What is run, checked as far as the soak depends on it."""
    overrides = ["train.device=cpu", *args.opts]
    config = load_config(args.config_file, overrides)
    if config.train.log_period != 1:
        raise InputError(
            f"train.log_period={config.train.log_period}, but the losses of every iteration are "
            "compared: add train.log_period=1"
        )
    if config.train.checkpointer.period >= config.train.max_iter:
        raise InputError(
            f"train.checkpointer.period={config.train.checkpointer.period} is not below "
            f"train.max_iter={config.train.max_iter}: no checkpoint would be written on the way"
        )
    for split in ("train", "test"):
        if config.dataloader[split].num_workers < 1:
            raise InputError(
                f"dataloader.{split}.num_workers must be above 0: workers are killed, too"
            )
    return Setting(
        ROOT / "train_net.py", args.config_file, tuple(overrides), int(config.train.max_iter)
    )


def main():
    """Soaks, prints what happens and the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="after them no round is begun")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
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
        default="configs/shapes/snnet_soak.py",
        metavar="FILE",
        help="default: a tiny detector on generated scenes",
    )
    parser.add_argument("--folder", default="output/soak", help="default: output/soak")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table to this file")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args()
    # What is asked to end leaves no training behind, whether from the keyboard or not.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    with exit_on_input_error():
        soak = Soak(read_setting(args), Path(args.folder), lambda line: print(line, flush=True))
        print(f"Seed {args.seed}, {args.minutes:g} minutes", flush=True)
        deadline = time.monotonic() + 60 * args.minutes
        try:
            soak.play(args.seed, args.first_round, args.processes, deadline)
        except KeyboardInterrupt:
            print("Interrupted: what comes now is of the rounds that were finished.")
        table = soak.tally.markdown(PHASES)
        print(f"\n{table}", end="")
        if args.markdown:
            write_atomically(args.markdown, table.encode())
    lost = soak.tally.rounds - soak.tally.equal_rounds
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
