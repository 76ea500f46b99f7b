"""Drawing of one generated scene: textured shapes on a textured background, with exact masks."""

import colorsys
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CATEGORIES", "SIZE_BUCKETS", "available_buckets", "draw_scene"]

CATEGORIES = ("circle", "triangle", "square", "star", "cross", "ring")

# Areas in square pixels to draw in. They keep a distance from COCO's borders (32² and 96²), so that
# an object that loses some pixels to another one mostly stays in the range it was meant for.
SIZE_BUCKETS = {"small": (300.0, 980.0), "medium": (1150.0, 8000.0), "large": (10500.0, 17000.0)}

_BUCKET_WEIGHTS = {"small": 0.25, "medium": 0.5, "large": 0.25}
_RING_HOLE = 0.55  # inner radius / outer radius
_MAX_OBJECTS = 6
_MIN_VISIBLE_FRACTION = 0.6
_MIN_VISIBLE_AREA = 120  # square pixels
_MAX_TILT = 20.0  # degrees: things mostly stand upright, and a short training learns them so
_SUPERSAMPLING = 4


@dataclass
class _Shape:
    """A shape placed in the image; ``visible`` shrinks when later shapes cover it."""

    category: int
    outlines: list[np.ndarray]  # (points, 2) xy in pixels: the outer outline, then the hole
    full_area: float
    whole: np.ndarray  # (H, W) bool: all that lies inside the image
    visible: np.ndarray  # (H, W) bool


def draw_scene(
    rng: np.random.Generator, image_size: int, category: int, bucket: str, empty: bool = False
) -> tuple[np.ndarray, list[dict]]:
    """Draws one scene.

    Args:
        rng: The only source of randomness.
        image_size: Height and width in pixels.
        category: Index into ``CATEGORIES`` of the object that is placed first, completely inside
            the image.
        bucket: Size range (key of ``SIZE_BUCKETS``) of that object.
        empty: Leave out all objects.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its objects as in COCO's format, without ids; mask, area
        and box are of the visible pixels.
    """
    canvas = _background(rng, image_size)
    shapes = [] if empty else _place_shapes(rng, image_size, category, bucket)
    light = rng.uniform(0, 2 * np.pi)
    for shape in shapes:
        _paint(rng, canvas, shape, light)
    canvas += rng.normal(0, rng.uniform(1.5, 6.0), canvas.shape).astype(np.float32)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return image, [_annotate(shape) for shape in shapes]


# ---------------------------------------------------------------------------------------- geometry


def _unit_outlines(category: int) -> list[np.ndarray]:
    """Outlines of a category around the origin, scaled to an area of 1."""
    name = CATEGORIES[category]
    if name in ("circle", "ring"):
        outlines = [_regular(40)]
        if name == "ring":
            outlines.append(_regular(40) * _RING_HOLE)
    elif name in ("triangle", "square"):
        outlines = [_regular(3)] if name == "triangle" else [_regular(8)[1::2]]
    elif name == "star":
        star = _regular(10)
        star[1::2] *= 0.45
        outlines = [star]
    else:
        a, b = 1.0, 0.34
        quarter = np.array([(b, b), (b, a), (-b, a)])
        turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
        outlines = [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]
    area = _area(outlines[0]) - sum(_area(hole) for hole in outlines[1:])
    return [outline / np.sqrt(area) for outline in outlines]


def _regular(points: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(points) / points
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)  # the first point is the top one


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _place_shapes(
    rng: np.random.Generator, image_size: int, category: int, bucket: str
) -> list[_Shape]:
    buckets = available_buckets(image_size)
    weights = np.array([_BUCKET_WEIGHTS[name] for name in buckets])
    wanted = [(category, bucket, True)]
    for _ in range(rng.integers(0, _MAX_OBJECTS)):
        name = buckets[rng.choice(len(buckets), p=weights / weights.sum())]
        wanted.append((int(rng.integers(len(CATEGORIES))), name, False))
    wanted = [(kind, _draw_area(rng, name), inside) for kind, name, inside in wanted]
    # Mostly large to small, else small objects would nearly always be hidden.
    wanted.sort(key=lambda item: -item[1] * rng.lognormal(0, 0.5))

    shapes: list[_Shape] = []
    for kind, area, inside in wanted:
        for _ in range(12):
            shape = _candidate(rng, image_size, kind, area, inside, shapes)
            if _fits(shape, shapes):
                for other in shapes:
                    other.visible &= ~shape.whole
                shapes.append(shape)
                break
    return shapes


def available_buckets(image_size: int) -> list[str]:
    """Size ranges that an image has room for; all three from 216 pixels on."""
    return [name for name, (low, _) in SIZE_BUCKETS.items() if 4.4 * low <= image_size**2]


def _draw_area(rng: np.random.Generator, bucket: str) -> float:
    low, high = SIZE_BUCKETS[bucket]
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _candidate(
    rng: np.random.Generator,
    image_size: int,
    category: int,
    area: float,
    inside: bool,
    shapes: list[_Shape],
) -> _Shape:
    angle, stretch = (
        np.radians(rng.uniform(-_MAX_TILT, _MAX_TILT)),
        np.exp(rng.uniform(-0.14, 0.14)),
    )
    cos, sin = np.cos(angle), np.sin(angle)
    rotate = np.array([(cos, sin), (-sin, cos)])
    shear = np.diag([stretch, 1 / stretch])
    outlines = [np.sqrt(area) * outline @ rotate @ shear for outline in _unit_outlines(category)]
    reach = np.abs(outlines[0]).max(axis=0)
    limit = 0.49 * image_size / reach.max()
    if limit < 1:
        outlines = [outline * limit for outline in outlines]
        reach = reach * limit
    margin = reach if inside else 0.75 * reach
    centre = rng.uniform(margin, image_size - margin)
    if shapes and not inside and rng.random() < 0.25:
        # Uniform places alone give few overlaps: move next to a shape that is there already.
        neighbour = shapes[rng.integers(len(shapes))].outlines[0]
        direction = _regular(16)[rng.integers(16)]
        centre = neighbour.mean(axis=0) + direction * 0.8 * (np.ptp(neighbour) / 2 + reach.mean())
        centre = np.clip(centre, margin, image_size - margin)
    # Two decimals are what the annotation file keeps: the mask must be that of the rounded outline.
    outlines = [np.round(outline + centre, 2) for outline in outlines]
    whole = _mask(outlines[0], image_size)
    for hole in outlines[1:]:
        whole &= ~_mask(hole, image_size)
    full_area = _area(outlines[0]) - sum(_area(hole) for hole in outlines[1:])
    return _Shape(category, outlines, full_area, whole, whole.copy())


def _mask(outline: np.ndarray, image_size: int) -> np.ndarray:
    """(H, W) bool, by the same rasterisation that evaluation uses for polygons."""
    rle = mask_util.frPyObjects([outline.ravel().tolist()], image_size, image_size)
    return mask_util.decode(rle)[:, :, 0].astype(bool)


def _fits(shape: _Shape, shapes: list[_Shape]) -> bool:
    """Whether the shape and all it would cover stay visible enough to be recognised."""
    for candidate, covered in [(shape, None), *((other, shape.whole) for other in shapes)]:
        visible = candidate.visible if covered is None else candidate.visible & ~covered
        needed = max(_MIN_VISIBLE_FRACTION * candidate.full_area, _MIN_VISIBLE_AREA)
        if np.count_nonzero(visible) < needed:
            return False
    return True


def _annotate(shape: _Shape) -> dict:
    rows, columns = (np.flatnonzero(shape.visible.any(axis=axis)) for axis in (1, 0))
    bbox = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    outline = shape.outlines[0]
    in_image = outline.min() >= 0 and (outline.max(axis=0) <= shape.whole.shape[::-1]).all()
    unoccluded = np.array_equal(shape.visible, shape.whole)
    if in_image and unoccluded and len(shape.outlines) == 1:
        segmentation: list | dict = [outline.ravel().tolist()]
    else:
        rle = mask_util.encode(np.asfortranarray(shape.visible, dtype=np.uint8))
        segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return {
        "category_id": shape.category + 1,
        "segmentation": segmentation,
        "area": int(np.count_nonzero(shape.visible)),
        "bbox": [int(value) for value in bbox],
        "iscrowd": 0,
    }


# ---------------------------------------------------------------------------------------- painting


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W, 3) float32 RGB, 0 to 255: two patterns on top of each other, with faint clutter."""
    base = _colour(rng, saturation=rng.uniform(0.1, 0.5))
    canvas = _textured(rng, size, size, base, contrast=rng.uniform(5, 25))
    if rng.random() < 0.5:
        region = _noise(rng, size, size, cell=size / 3)[:, :, None] > rng.uniform(0.4, 0.6)
        other = np.clip(base + rng.normal(0, 15, 3), 0, 255)
        canvas = np.where(region, _textured(rng, size, size, other, contrast=15), canvas)
    clutter = Image.new("L", (size, size))
    pen = ImageDraw.Draw(clutter)
    for _ in range(rng.integers(0, 14)):
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.45, 16))
        steps = rng.uniform(3, 9) * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        path = rng.uniform(0, size, 2) + np.cumsum(steps, axis=0)
        grey, line_width = int(rng.integers(40, 170)), int(rng.integers(1, 4))
        pen.line([tuple(point) for point in path], fill=grey, width=line_width, joint="curve")
    alpha = np.asarray(clutter.filter(ImageFilter.GaussianBlur(0.7)), np.float32)[:, :, None] / 255
    return (canvas + alpha * (_colour(rng, saturation=0.5) - canvas)).astype(np.float32)


def _paint(rng: np.random.Generator, canvas: np.ndarray, shape: _Shape, light: float) -> None:
    size = canvas.shape[0]
    shadow_shift = rng.uniform(1.0, 4.0) * np.array([np.cos(light), np.sin(light)])
    pad = 10
    outer = shape.outlines[0]
    x0, y0 = np.maximum(np.floor(outer.min(axis=0)).astype(int) - pad, 0)
    x1, y1 = np.minimum(np.ceil(outer.max(axis=0)).astype(int) + pad, size)
    window = canvas[y0:y1, x0:x1]
    height, width = window.shape[:2]

    alpha = _coverage(shape.outlines, (x0, y0), height, width)
    shadow = _coverage([o + shadow_shift for o in shape.outlines], (x0, y0), height, width)
    blurred = Image.fromarray((shadow * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.5))
    window *= 1 - rng.uniform(0.0, 0.55) * np.asarray(blurred, np.float32)[:, :, None] / 255

    around = window.mean(axis=(0, 1))
    colour = _typical_colour(rng, shape.category)
    for _ in range(20):
        if np.linalg.norm(colour - around) > 80:
            break
        colour = _typical_colour(rng, shape.category)
    fill = _textured(rng, height, width, colour, contrast=rng.uniform(5, 30))
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = (xs / width - 0.5) * np.cos(light) + (ys / height - 0.5) * np.sin(light)
    fill *= (1 - rng.uniform(0.0, 0.5) * slope)[:, :, None]
    alpha = alpha[:, :, None]
    window += alpha * (np.clip(fill, 0, 255) - window)


def _coverage(
    outlines: list[np.ndarray], origin: tuple[int, int], height: int, width: int
) -> np.ndarray:
    """(height, width) float32: the share of each pixel that lies inside the outlines."""
    scale = _SUPERSAMPLING
    image = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(image)
    for outline, fill in zip(outlines, (255, 0), strict=False):
        # Pillow addresses the centres of pixels, outlines the plane: half a fine pixel apart.
        fine = (outline - np.array(origin)) * scale - 0.5
        pen.polygon([tuple(point) for point in fine], fill=fill)
    return np.asarray(image.reduce(scale), np.float32) / 255


def _colour(rng: np.random.Generator, saturation: float) -> np.ndarray:
    vivid = rng.uniform(15, 240, 3).astype(np.float32)
    return vivid.mean() + saturation * (vivid - vivid.mean())


def _typical_colour(rng: np.random.Generator, category: int) -> np.ndarray:
    """A colour of a category: kinds of things differ in hue as well as in outline.

    The hues of neighbouring categories touch, so the outline still has to decide between them.
    """
    hue = (category + rng.normal(0, 0.3)) / len(CATEGORIES) % 1.0
    saturation, value = rng.uniform(0.45, 0.95), rng.uniform(0.45, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def _textured(
    rng: np.random.Generator, height: int, width: int, colour: np.ndarray, contrast: float
) -> np.ndarray:
    """(height, width, 3) float32: a random pattern between two colours around ``colour``."""
    offset = rng.normal(0, 1, 3)
    offset *= contrast / np.linalg.norm(offset)
    pattern = _pattern(rng, height, width)[:, :, None] - 0.5
    return (colour + 2 * pattern * offset).astype(np.float32)


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32, 0 to 1."""
    kind = rng.choice(["gradient", "stripes", "checker", "noise", "blots"])
    if kind == "noise":
        cell = rng.uniform(3, 40)
        fine = _noise(rng, height, width, max(cell / 4, 1.5))
        return 0.65 * _noise(rng, height, width, cell) + 0.35 * fine
    if kind == "blots":
        return _step(_noise(rng, height, width, rng.uniform(4, 30)) - 0.5, 12)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(5, 36)
    u, v = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
    if kind == "gradient":
        return (u - u.min()) / max(float(np.ptp(u)), 1.0)
    wave = np.sin(2 * np.pi * u / period)
    if kind == "checker":
        wave = wave * np.sin(2 * np.pi * v / period)
    return _step(wave, rng.uniform(1, 6))


def _step(values: np.ndarray, sharpness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(sharpness * values)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """(height, width) float32, 0 to 1: smooth noise whose bumps are ``cell`` pixels wide."""
    grid = rng.random((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
    smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth), 0, 1)
