"""Exported stitches behind the page, in place of the model they were exported from."""

import os
from pathlib import Path

import numpy as np
from detectron2.structures import Instances

from snnet_vitdet.deploy import Predictor, read_export
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.stitching import Cost

__all__ = ["ExportedStitches"]


class ExportedStitches:
    """One exported stitch or several, to be chosen from as from a whole model.

    The files are data: none of their content is run.
    """

    def __init__(self, path: str | os.PathLike[str], device: str, precision: str) -> None:
        """
        Args:
            path: Of a file, or of a folder of such files of one training.
            device: As for :class:`Predictor`.
            precision: As for :class:`Predictor`.

        Raises:
            InputError: If there is none, one cannot be used, or they are not of one training.
        """
        files = sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else [Path(path)]
        if not files:
            raise InputError(f"folder {path} has no exported files (.safetensors)")
        infos = {file: read_export(file) for file in files}
        of_id: dict[int, Path] = {}
        for file, info in infos.items():
            if info.stitch is None:
                raise InputError(f"{file} is of a baseline: it has no stitches to choose from")
            if info.class_names != infos[files[0]].class_names:
                raise InputError(
                    f"{file} and {files[0]} are not of one training, their classes differ: give "
                    "one of them alone, or another folder"
                )
            if info.stitch.id in of_id:
                raise InputError(
                    f"{file} and {of_id[info.stitch.id]} both have stitch {info.name}: give one of "
                    "them alone, or another folder"
                )
            of_id[info.stitch.id] = file
        chosen = [infos[of_id[i]] for i in sorted(of_id)]
        self.stitches = [info.stitch for info in chosen]
        """All there are, by id."""
        self.costs = [Cost(info.gflops * 1e9, info.params_m * 1e6) for info in chosen]
        """What each costs, in the same order."""
        self.table = _table(chosen, os.fspath(path))
        """What their sweep found; None without one."""
        self._predictors = {
            i: Predictor.from_file(file, device=device, precision=precision)
            for i, file in of_id.items()
        }
        self._predictor = self._predictors[self.stitches[0].id]

    def set_score_threshold(self, score: float) -> None:
        """Leaves detections of lower scores out from the next image on."""
        for predictor in self._predictors.values():
            predictor.set_score_threshold(score)

    def set_stitch(self, stitch_id: int) -> None:
        """Puts a stitch into effect from the next image on."""
        self._predictor = self._predictors[stitch_id]

    def __call__(self, image: np.ndarray) -> Instances:
        """Detects in an image, see :class:`Predictor`."""
        return self._predictor(image)


def _table(infos, source: str) -> StitchTable | None:
    table = StitchTable(source=source)
    for info in infos:
        if info.result is not None:
            table.put(info.result, info.curve)
    return table if len(table) else None
