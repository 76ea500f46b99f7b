"""The trainings and sweeps of the study, each in its own folder; unfinished ones are resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from snnet_vitdet.errors import InputError

from .variants import ALONE, CONFIGS, Variant

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """All runs of some seeds: pretraining, each ViT alone, and the variants of the supernet.

    Attributes:
        program: Path of ``train_net.py``.
        folder: The folder of all runs.
        pretrain_iter: Iterations of the pretraining: each ViT alone, from random weights. The other
            runs start from its backbone.
        max_iter: Iterations of the other runs, times the length of the variant.
        overrides: Overrides of every run; those of the variant come after them.
        threads: Threads of each process.
        pretrained: Checkpoints of the two ViTs, by ``small`` and ``large``, for all seeds; without
            them, each seed has a pretraining of its own.
    """

    program: Path
    folder: Path
    pretrain_iter: int
    max_iter: int
    overrides: tuple[str, ...] = ()
    threads: int = 1
    pretrained: Mapping[str, Path] = field(default_factory=dict)

    def play(
        self,
        seeds: Iterable[int],
        variants: Sequence[Variant],
        jobs: int,
        finished: Callable[[int, Variant, list[dict]], None],
    ) -> None:
        """Runs everything that is not finished, variant by variant, each with all seeds.

        Args:
            seeds: Seeds of the trainings.
            variants: Variants to train besides the two ViTs alone.
            jobs: Number of runs at a time.
            finished: Called with seed, variant and rows of the sweep, in the order of the variants;
                the ViTs alone come first.

        Raises:
            InputError: If a run fails, once the runs under way have ended.
        """
        with ThreadPoolExecutor(jobs) as pool:
            pretrained = {
                seed: [pool.submit(self._pretrain, vit, seed) for vit in ALONE]
                for seed in seeds
                if not self.pretrained
            }
            runs = {
                (seed, variant): pool.submit(self._train, variant, seed, pretrained.get(seed, []))
                for variant in (*ALONE.values(), *variants)
                for seed in seeds
            }
            try:
                for (seed, variant), run in runs.items():
                    finished(seed, variant, run.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def run(self, name: str, config: str, overrides: Sequence[str], seed: int) -> list[dict]:
        """Trains and sweeps; an unfinished run is resumed.

        Args:
            name: Name of the run.
            config: Key of its config file.
            overrides: Overrides of this run.
            seed: Seed of the training.

        Returns:
            The rows of its sweep.

        Raises:
            InputError: If it fails.
        """
        output = self._output(name, seed)
        if not (output / "finished").is_file():
            where = (f"train.seed={seed}", f"train.output_dir={output}")
            for flags in (["--resume"], ["--resume", "--eval-only"]):
                command = [str(self.program), "--config-file", CONFIGS[config], *flags]
                self._start([*command, *self.overrides, *overrides, *where], output)
            (output / "finished").touch()
        return json.loads((output / "sweep" / "stitches.json").read_text(encoding="utf-8"))

    def _pretrain(self, vit: str, seed: int) -> None:
        self.run(f"pretrained_{vit}", vit, [f"train.max_iter={self.pretrain_iter}"], seed)

    def _train(self, variant: Variant, seed: int, pretrained: Sequence[Future]) -> list[dict]:
        # They were submitted before this run, so they have at least started.
        for run in pretrained:
            run.result()
        starts = {"net": variant.vit} if variant.vit else {vit: vit for vit in ALONE}
        overrides = [f"train.max_iter={round(variant.length * self.max_iter)}"]
        for key, vit in starts.items():
            own = self._output(f"pretrained_{vit}", seed) / "model_final.pth"
            overrides.append(f"init.weights.{key}={self.pretrained.get(vit, own)}")
        overrides += variant.overrides
        return self.run(variant.name, variant.vit or "supernet", overrides, seed)

    def _output(self, name: str, seed: int) -> Path:
        return self.folder / f"seed{seed}" / name

    def _start(self, command: Sequence[str], output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        log = output.with_name(f"{output.name}.log")
        with open(log, "a", encoding="utf-8") as file:
            status = subprocess.run(
                [sys.executable, *command],
                cwd=self.program.parent,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
            raise InputError(f"{output} ended with status {status} ({last}); see {log}")
