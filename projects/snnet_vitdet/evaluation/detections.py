"""The detections of many stitches, packed into arrays and kept on disk until they are scored.

134 stitches find tens of millions of objects in COCO's 5,000 images. As the dictionaries that
COCO's scorers take, these would need tens of GB of memory. Here a process holds the packed
detections of a few images while it detects, and those of one stitch while it scores.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snnet_vitdet.files import read_json, replacing
from snnet_vitdet.modeling import rows_with_count

from .mask_rle import MaskRuns

__all__ = ["DetectionStore", "Detections", "unpacked"]

_MANIFEST = "manifest.json"
_FIELDS = ("image_ids", "classes", "boxes", "scores", "sizes", "lengths", "rles")


@dataclass(frozen=True)
class Detections:
    """What a stitch detects in an image, as arrays, which another process gets in little time.

    Attributes:
        image_id: The image.
        points: Names of the operating points: the stitch with several numbers of proposals.
        boxes: x0, y0, x1, y1 in pixels of the image, (N, 4) in float32.
        scores: (N,) in float32.
        classes: Numbers of the classes, (N,).
        places: The place of each detection in the results of each point, (N, points); see
            :func:`.rows_with_count`.
        mask_runs: The masks; None for boxes alone.
    """

    image_id: int
    points: Sequence[str]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    places: np.ndarray
    mask_runs: MaskRuns | None = None

    def packed(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yields each point and the arrays that a file has of it."""
        rles = self.mask_runs.encoded() if self.mask_runs else []
        # As COCO's results: x, y, width and height.
        boxes = self.boxes.copy()
        boxes[:, 2:] -= boxes[:, :2]
        for index, point in enumerate(self.points):
            rows = rows_with_count(self.places, index)
            own = [rles[row] for row in rows.tolist()] if rles else []
            counts = [rle["counts"] for rle in own]
            arrays = {
                "image_ids": np.full(len(rows), self.image_id, dtype=np.int64),
                "classes": self.classes[rows].astype(np.int32),
                "boxes": boxes[rows],
                "scores": self.scores[rows],
                "sizes": np.array([rle["size"] for rle in own], dtype=np.int32).reshape(-1, 2),
                "lengths": np.array([len(each) for each in counts], dtype=np.int64),
                "rles": np.frombuffer(b"".join(counts), dtype=np.uint8),
            }
            yield point, arrays


class DetectionStore:
    """A folder of files, each with the detections of all stitches in some images.

    A file gets its name when it is complete, so an interrupted pass can go on from the files that
    are there. All numbers are kept exactly.
    """

    def __init__(
        self, folder: str | os.PathLike[str], rank: int = 0, images_per_file: int = 50
    ) -> None:
        """
        Args:
            folder: The folder, shared by all processes.
            rank: Index of this process.
            images_per_file: Number of images after which a file is written, at the end of a batch;
                bounds the memory.
        """
        self.folder = Path(folder)
        self.rank = rank
        self.images_per_file = images_per_file
        self._pending: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
        self._pending_images: list[int] = []

    def open(self, plan: Mapping[str, object], points: Iterable[str]) -> list[str]:
        """Prepares the folder. One process calls this before the others use it.

        Args:
            plan: What the files depend on besides the points. Files with the same plan are kept.
            points: Names of the operating points whose detections are needed.

        Returns:
            The points whose detections are in the files: those needed, perhaps more if files were
            kept.
        """
        plan, wanted = json.loads(json.dumps(plan)), sorted(points)
        path = self.folder / _MANIFEST
        try:
            manifest = read_json(path)
            if manifest["plan"] == plan and set(wanted) <= set(manifest["points"]):
                return manifest["points"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no manifest, or another program's: start over
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        path.write_text(json.dumps({"plan": plan, "points": wanted}), encoding="utf-8")
        return wanted

    def num_images_done(self) -> int:
        """Number of images of this process in the files."""
        return len(self.image_ids(self.rank))

    def add(self, batch: Iterable[Detections]) -> None:
        """Adds the detections of all points in the images of a batch.

        A file never has part of a batch, because a resumed pass would detect in that part again.

        Args:
            batch: The detections of each stitch, in the same order of the images.
        """
        image_ids = {}
        for detections in batch:
            image_ids[detections.image_id] = None
            for point, arrays in detections.packed():
                self._pending[point].append(arrays)
        self._pending_images.extend(image_ids)
        if len(self._pending_images) >= self.images_per_file:
            self.flush()

    def flush(self) -> None:
        """Writes the detections that are still in memory."""
        if not self._pending_images:
            return
        arrays = {"images": np.array(self._pending_images, dtype=np.int64)}
        for point, packed in self._pending.items():
            for name in _FIELDS:
                arrays[f"{point}/{name}"] = np.concatenate([fields[name] for fields in packed])
        number = sum(1 for _ in self._files(self.rank))
        path = self.folder / f"{self.rank:04d}-{number:06d}.npz"
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)
        self._pending.clear()
        self._pending_images.clear()

    def arrays_of(self, point: str) -> dict[str, np.ndarray]:
        """All detections of a point, of all processes, as arrays.

        Returns:
            Of N detections, ``image_ids`` (N,), ``classes`` from 0 (N,), ``boxes`` as x, y, width
            and height (N, 4), ``scores`` (N,); of M masks, N or 0, as COCO's RLE ``sizes`` (M, 2),
            ``lengths`` of the texts (M,), and all texts as bytes, ``rles``.
        """
        parts = []
        for path in self._files():
            with np.load(path) as arrays:
                parts.append({name: arrays[f"{point}/{name}"] for name in _FIELDS})
        return {name: np.concatenate([part[name] for part in parts]) for name in _FIELDS}

    def image_ids(self, rank: int | None = None) -> list[int]:
        """The ids of the images in the files of a process, or of all processes."""
        image_ids = []
        for path in self._files(rank):
            with np.load(path) as arrays:
                image_ids.extend(arrays["images"].tolist())
        return image_ids

    def delete(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, rank: int | None = None) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz" if rank is None else f"{rank:04d}-*.npz"))


def unpacked(packed: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """The detections in the arrays of a point, as ``instances_to_coco_json`` makes them."""
    text = packed["rles"].tobytes().decode("ascii")
    ends = np.cumsum(packed["lengths"]).tolist()
    sizes = packed["sizes"].tolist()
    columns = (packed[name].tolist() for name in ("image_ids", "classes", "boxes", "scores"))
    for index, (image_id, category, box, score) in enumerate(zip(*columns, strict=True)):
        detection = {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        if ends:
            start = ends[index - 1] if index else 0
            rle = {"size": sizes[index], "counts": text[start : ends[index]]}
            detection["segmentation"] = rle
        yield detection
