"""What is wrong or odd in a data set, with every image file read."""

import contextlib
import functools
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from snnet_vitdet.errors import InputError

from .annotations import ODD_GEOMETRY, describe_annotation, odd_geometry
from .checks import Inspection
from .images import REMEDIES, ImageFacts, ImageFault, ImageFolder, inspect_image
from .sentences import about

__all__ = ["DatasetSurvey", "shared_images"]

_MAX_DETECTIONS = 100  # per image, in COCO's evaluation and in the detectors here
_CHUNK = 16  # images that a process is handed at once

# Predicates of images by kind of fault; ``REMEDIES`` has what to do.
_IMAGE_FAULTS = {
    "missing": "are not there",
    "not opened": "cannot be opened",
    "empty": "are empty",
    "no image": "are of no format that is known",
    "damaged": "are damaged or truncated",
    "too large": "have more pixels than an image may have",
    "deep": "have grey values of more than 8 bits",
    "size": "are of another size than the annotations say",
    "turned": "are stored turned, and annotated as they are stored",
    "thin": "are so long and thin that no pixel is left once resized",
}
# Predicates and consequences by attribute of ImageFacts.
_IMAGE_NOTES = {
    "turned": (
        "are stored turned or mirrored by the EXIF data",
        "the upright image is used, and its annotations have to be for that",
    ),
    "has_alpha": (
        "have transparency, which is ignored",
        "transparent pixels show their stored colour",
    ),
    "large": (
        "have so many pixels that Pillow warns of them",
        "reading each takes long and hundreds of MB; smaller copies train the same",
    ),
    "frames": ("have several frames or pages, of which the first is used", ""),
}
_OBJECT_NOTES = {
    "over": ("have a box that reaches over the border of the image", "it is clipped there"),
    "tiny": ("are thinner than a pixel once the image is resized to {image_size} pixels", ""),
    "twice": ("have the same box and category as another one of the image", ""),
}


class DatasetSurvey:
    """The data of training or of test: the annotation file and its image files.

    Attributes:
        json_file: The annotation file.
        found: The inspection of the annotation file.
        images: Path of every image that is there, and width and height where they are known.
        modes: Number of images in order by Pillow's mode.
        sizes: Width and height in pixels of the images in order, upright.
        digests: Path by digest of the content, of images that have been decoded.
    """

    def __init__(
        self,
        json_file: str,
        image_root: str,
        *,
        for_evaluation: bool,
        masks: bool = True,
        max_aspect: float = math.inf,
    ) -> None:
        """Reads the annotation file.

        Args:
            json_file: The annotation file.
            image_root: The folder of the images.
            for_evaluation: Whether they are test data.
            masks: Whether masks are learnt or scored.
            max_aspect: Ratio of the longer to the shorter side from which on an image is too thin.
        """
        self.json_file = json_file
        self.found = Inspection(json_file, image_root, for_evaluation=for_evaluation, masks=masks)
        self.images: list[tuple[str, tuple[int, int] | None]] = []
        folder = ImageFolder(image_root)
        for image in self.found.data["images"] if self.found.data else []:
            name, size = image.get("file_name"), (image.get("width"), image.get("height"))
            if isinstance(name, str) and name not in self.found.missing:
                whole = all(type(side) is int and side > 0 for side in size)
                self.images.append((folder.path(name), size if whole else None))
        self.modes: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.digests: dict[str, str] = {}
        self._for_evaluation = for_evaluation
        self._max_aspect = max_aspect
        self._image_faults: dict[str, list[str]] = defaultdict(list)
        self._image_notes: dict[str, list[str]] = defaultdict(list)

    def read_images(self, *, decode: bool, workers: int) -> None:
        """Reads all image files, with a progress bar on a terminal.

        Args:
            decode: Whether to decode the whole files.
            workers: Number of processes; 0 for this one alone.

        Raises:
            InputError: A process ended without an answer.
        """
        look = functools.partial(_look, decode=decode)
        label = f"{'test' if self._for_evaluation else 'train'} images"
        bar = {"total": len(self.images), "unit": "image", "disable": None, "file": sys.stderr}
        try:
            with contextlib.ExitStack() as stack:
                results = map(look, self.images)
                if workers:
                    pool = stack.enter_context(ProcessPoolExecutor(workers))
                    results = pool.map(look, self.images, chunksize=_CHUNK)
                for (path, _), found in zip(self.images, tqdm(results, label, **bar), strict=True):
                    self._add_image(path, found)
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} processes that read images was killed from outside, as happens "
                "when a system is out of memory: give fewer --workers"
            ) from error

    def _add_image(self, path: str, found: ImageFacts | ImageFault) -> None:
        if isinstance(found, ImageFacts):
            short, long = sorted((found.width, found.height))
            if long >= self._max_aspect * short:
                problem = f"it has {found.width} x {found.height} pixels"
                found = ImageFault("thin", path, problem)
        if isinstance(found, ImageFault):
            self._image_faults[found.kind].append(f"{path}: {found.problem}")
            return
        self.modes[found.mode] += 1
        self.sizes.append((found.width, found.height))
        if found.digest:
            self.digests.setdefault(found.digest, path)
        for kind in _IMAGE_NOTES:
            if getattr(found, kind):
                self._image_notes[kind].append(path)

    def faults(self) -> Iterator[str]:
        """A sentence per kind of fault."""
        yield from self.found.faults
        things = f"images of {self.json_file}"
        for kind, text in _IMAGE_FAULTS.items():
            if found := self._image_faults[kind]:
                yield about(
                    *(found, len(self.images), things, text, REMEDIES[kind]), separator="; "
                )

    def notes(self, image_size: int) -> Iterator[str]:
        """A sentence for each oddity that is handled and worth knowing.

        Args:
            image_size: Side in pixels that the images are resized to.
        """
        if self.found.summary is not None:
            yield from self.found.warnings
            yield from self._notes_of_images()
            odd = self._odd_objects(image_size)
            for kind, (text, consequence) in (_OBJECT_NOTES | ODD_GEOMETRY).items():
                if odd[kind] and kind not in self.found.geometry:
                    things = f"annotations in {self.json_file}"
                    text = text.format(image_size=image_size)
                    yield about(
                        odd[kind], self.found.summary.annotations, things, text, consequence
                    )
        for kind, (text, consequence) in _IMAGE_NOTES.items():
            if found := self._image_notes[kind]:
                things = f"images of {self.json_file}"
                yield about(found, len(self.images), things, text, consequence)

    def _notes_of_images(self) -> Iterator[str]:
        summary, source = self.found.summary, self.json_file
        names = Counter(str(image.get("file_name")) for image in self.found.data["images"])
        if twice := [name for name, count in names.items() if count > 1]:
            things, text = f"file names in {source}", "are listed more than once"
            yield about(twice, len(names), things, text, "these images count as often")
        if without := [
            summary.categories[k] for k, count in summary.instances.items() if not count
        ]:
            text = f"have no object in {source}"
            yield about(without, len(summary.categories), "categories", text)
        if not self._for_evaluation and summary.empty_images:
            images: dict[bool, set[str]] = {True: set(), False: set()}
            for annotation in self.found.data["annotations"]:
                images[bool(annotation.get("iscrowd"))].add(str(annotation.get("image_id")))
            with_crowds = len(images[True] - images[False])
            yield (
                f"Training leaves out {summary.empty_images} of {summary.images} images of "
                f"{source}, which have no object"
                f"{f' ({with_crowds} with crowds)' if with_crowds else ''}."
            )
        name, count = self._most_objects()
        if self._for_evaluation and count > _MAX_DETECTIONS:
            yield (
                f"{name} of {source} has {count} objects: a detector gives at most "
                f"{_MAX_DETECTIONS} an image, and COCO's evaluation counts no more, so that the "
                "others count as missed."
            )

    def _most_objects(self) -> tuple[str, int]:
        """Name of the image with the largest number of objects, crowds aside, and that number."""
        counts = Counter(
            annotation.get("image_id")
            for annotation in self.found.data["annotations"]
            if type(annotation.get("image_id")) in (int, str) and not annotation.get("iscrowd")
        )
        if not counts:
            return "", 0
        image_id, count = counts.most_common(1)[0]
        images = self.found.data["images"]
        names = (image.get("file_name") for image in images if image.get("id") == image_id)
        return str(next(names, image_id)), count

    def _odd_objects(self, image_size: int) -> dict[str, list[str]]:
        """Objects by keys of ``_OBJECT_NOTES`` and ``ODD_GEOMETRY``."""
        odd: dict[str, list[str]] = defaultdict(list)
        seen = set()
        for annotation, index, size in self.found.objects:
            x, y, width, height = annotation["bbox"]
            kinds = odd_geometry(annotation, size)
            # A hundredth of a pixel is rounding.
            if min(x, y) < -0.01 or x + width > size[0] + 0.01 or y + height > size[1] + 0.01:
                kinds.append("over")
            if min(width, height) * image_size / max(size) < 1:
                kinds.append("tiny")
            key = annotation["image_id"], str(annotation.get("category_id")), x, y, width, height
            if key in seen:
                kinds.append("twice")
            seen.add(key)
            for kind in kinds:
                odd[kind].append(describe_annotation(annotation, index))
        return odd

    def facts(self) -> dict[str, object]:
        """What is counted, by name; for an annotation file that can be read."""
        summary, (name, most) = self.found.summary, self._most_objects()
        need = " (need the mask format bitmask)" if summary.rle_masks else ""
        facts = {
            "annotation file": self.json_file,
            "images": summary.images,
            "images without an object": summary.empty_images,
            "objects": sum(summary.instances.values()),
            **{f"  {size} by COCO": count for size, count in summary.sizes.items()},
            "most objects on an image": f"{most} ({name})" if most else 0,
            "crowds": summary.crowds,
            "objects with a mask": summary.masks,
            "objects with RLE masks": f"{summary.rle_masks}{need}",
            "boxes without area": summary.flat_boxes,
        }
        if by_area := sorted(self.sizes, key=math.prod):
            median = by_area[(len(by_area) - 1) // 2]
            sizes = {"smallest": by_area[0], "median": median, "largest": by_area[-1]}
            facts |= {f"{label} image": f"{w} x {h}" for label, (w, h) in sizes.items()}
        modes = ", ".join(f"{count} {mode}" for mode, count in self.modes.most_common())
        return facts | {"modes of images": modes or "none read"}


def shared_images(train: DatasetSurvey, test: DatasetSurvey) -> Iterator[str]:
    """Says which images are in both training and test, by their files or by their content."""
    things, consequence = "test images", "scores on them say little about new images"
    paths, others = ({os.path.realpath(path) for path, _ in each.images} for each in (train, test))
    if same := sorted(paths & others):
        text = "are in the training data as well"
        yield about(same, len(others), things, text, consequence)
        return
    ours, theirs = train.digests, test.digests
    copies = [
        f"{ours[digest]} and {theirs[digest]}"
        for digest in ours.keys() & theirs.keys()
        if ours[digest] != theirs[digest]
    ]
    if copies:
        text = "have the content of a training image"
        yield about(sorted(copies), len(others), things, text, consequence)


def _look(image: tuple[str, tuple[int, int] | None], decode: bool) -> ImageFacts | ImageFault:
    return inspect_image(*image, decode=decode)
