"""The detections of many stitches, packed into arrays and kept on disk until they are scored.

134 stitches find tens of millions of objects in COCO's 5,000 images. As the dictionaries that
COCO's scorers take, these would need tens of GB of memory. Here a process holds the packed
detections of a few images while it detects, and those of one stitch while it scores.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from snnet_vitdet.files import read_json, replacing

__all__ = ["DetectionStore"]

_MANIFEST = "manifest.json"
_FIELDS = ("image_ids", "classes", "boxes", "scores", "sizes", "lengths", "rles")


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
        self._pending: dict[str, list[dict[str, np.ndarray]]] = {}
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

    def add(self, point: str, detections: Sequence[Mapping[str, object]]) -> None:
        """Adds the detections of a point in an image of the current batch.

        Args:
            point: Name of the operating point.
            detections: As detectron2's ``instances_to_coco_json`` makes them: all with a
                segmentation (RLE), or none.
        """
        self._pending.setdefault(point, []).append(_pack(detections))

    def end_batch(self, image_ids: Iterable[int]) -> None:
        """Ends a batch: the detections of all points in these images have been added.

        A file never has part of a batch, because a resumed pass would detect in that part again.
        """
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
        self._pending, self._pending_images = {}, []

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

    def detections_of(self, point: str) -> list[dict]:
        """All detections of a point, of all processes, as they were given to :meth:`add`."""
        return list(_unpack(self.arrays_of(point)))

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


def _pack(detections: Sequence[Mapping[str, object]]) -> dict[str, np.ndarray]:
    rles = [d["segmentation"] for d in detections if "segmentation" in d]
    counts = [rle["counts"].encode("ascii") for rle in rles]
    return {
        "image_ids": np.array([d["image_id"] for d in detections], dtype=np.int64),
        "classes": np.array([d["category_id"] for d in detections], dtype=np.int32),
        # detectron2 computes them in single precision, so no digit is lost.
        "boxes": np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4),
        "scores": np.array([d["score"] for d in detections], dtype=np.float32),
        "sizes": np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2),
        "lengths": np.array([len(c) for c in counts], dtype=np.int64),
        "rles": np.frombuffer(b"".join(counts), dtype=np.uint8),
    }


def _unpack(packed: Mapping[str, np.ndarray]) -> Iterator[dict]:
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
