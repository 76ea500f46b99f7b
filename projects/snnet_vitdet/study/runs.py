"""The trainings and sweeps of the study, each in a folder of its own and resumed if need be."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from snnet_vitdet.errors import InputError

from .variants import ALONE, Variant

__all__ = ["CONFIGS", "Runner", "Study"]

CONFIGS = {
    "small": "configs/proxy/mask_rcnn_vitdet_proxy_s.py",
    "large": "configs/proxy/mask_rcnn_vitdet_proxy_l.py",
    "supernet": "configs/proxy/mask_rcnn_snnet_proxy.py",
}
"""Config files of the study, as paths from the repository; those of single ViTs by the ViT."""

_PRETRAINED = "pretrained_{}"


@dataclass(frozen=True)
class Runner:
    """Runs ``train_net.py``.

    Attributes:
        program: Its path.
        folder: Of all runs.
        overrides: Of every run, first of all.
        threads: Of each process.
    """

    program: Path
    folder: Path
    overrides: tuple[str, ...] = ()
    threads: int = 1

    def run(self, name: str, config: str, overrides: Sequence[str], seed: int) -> list[dict]:
        """Trains and sweeps, or goes on with what is there.

        Args:
            name: Of the run.
            config: Key of its config file.
            overrides: Of this run.
            seed: Of the training.

        Returns:
            The rows of its sweep.

        Raises:
            InputError: If it fails.
        """
        output = self.output(name, seed)
        results = output / "sweep" / "stitches.json"
        if not (output / "finished").is_file():
            given = (
                *self.overrides,
                *overrides,
                f"train.seed={seed}",
                f"train.output_dir={output}",
            )
            for flags in (["--resume"], ["--resume", "--eval-only"]):
                self._start(output, CONFIGS[config], flags, given)
            (output / "finished").touch()
        return json.loads(results.read_text(encoding="utf-8"))

    def output(self, name: str, seed: int) -> Path:
        """The output folder of a run.

        Args:
            name: Of the run.
            seed: Of the training.
        """
        return self.folder / f"seed{seed}" / name

    def _start(
        self, output: Path, config: str, flags: Sequence[str], overrides: Sequence[str]
    ) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        log = output.with_name(f"{output.name}.log")
        command = [sys.executable, str(self.program), "--config-file", config, *flags, *overrides]
        with open(log, "a", encoding="utf-8") as file:
            status = subprocess.run(
                command,
                cwd=self.program.parent,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
            raise InputError(f"{output} ended with status {status} ({last}); see {log}")


@dataclass(frozen=True)
class Study:
    """All runs of some seeds: pretraining, each ViT alone, and the variants of the supernet.

    Attributes:
        runner: Runs them.
        pretrain_iter: Iterations of each ViT from random weights, alone, whose backbone the others
            start from.
        max_iter: Iterations of each of the others; a variant may be longer or shorter.
    """

    runner: Runner
    pretrain_iter: int
    max_iter: int

    def play(
        self,
        seeds: Iterable[int],
        variants: Sequence[Variant],
        jobs: int,
        finished: Callable[[int, str, list[dict]], None],
    ) -> None:
        """Runs what is not there yet, some at a time: variant by variant, each with all its seeds.

        Args:
            seeds: Of the trainings.
            variants: Of the supernet, and ViTs alone for other lengths.
            jobs: How many runs at a time.
            finished: Is called with seed, name and rows of each run that is compared, in their
                order, the single ViTs first.

        Raises:
            InputError: If a run fails; those under way are waited for.
        """
        with ThreadPoolExecutor(jobs) as pool:
            pretrained = {
                seed: [pool.submit(self._pretrain, seed, vit) for vit in ALONE] for seed in seeds
            }
            runs = {
                (seed, variant.name): pool.submit(self._variant, seed, variant, pretrained[seed])
                for variant in (*ALONE.values(), *variants)
                for seed in seeds
            }
            try:
                for (seed, name), run in runs.items():
                    finished(seed, name, run.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _pretrain(self, seed: int, vit: str) -> list[dict]:
        length = f"train.max_iter={self.pretrain_iter}"
        return self.runner.run(_PRETRAINED.format(vit), vit, [length], seed)

    def _variant(self, seed: int, variant: Variant, pretrained: Sequence[Future]) -> list[dict]:
        # Submitted before this one, so they are under way or over.
        for run in pretrained:
            run.result()
        if variant.vit is None:
            config, starts = "supernet", {vit: vit for vit in ALONE}
        else:
            config, starts = variant.vit, {"net": variant.vit}
        overrides = [
            f"train.max_iter={round(variant.length * self.max_iter)}",
            *(f"init.weights.{key}={self._weights(seed, vit)}" for key, vit in starts.items()),
            *variant.overrides,
        ]
        return self.runner.run(variant.name, config, overrides, seed)

    def _weights(self, seed: int, vit: str) -> Path:
        return self.runner.output(_PRETRAINED.format(vit), seed) / "model_final.pth"
