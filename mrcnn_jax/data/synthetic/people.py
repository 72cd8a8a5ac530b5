"""The kind "people": articulated figures with COCO's 17 keypoints, in front of objects without a category.

Left and right look the same, and differ only by whether the face is visible. So a mirrored image with exchanged
keypoints is from the same distribution. Nose and eyes of a person seen from behind are not labeled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data.synthetic import bodies, figures, outlines, scene
from mrcnn_jax.data.synthetic.bodies import HEAD_HALF_WIDTH, Body
from mrcnn_jax.data.synthetic.scene import Figure
from mrcnn_jax.weights.coco_categories import PERSON_KEYPOINTS, PERSON_SKELETON

CATEGORIES: list[dict[str, Any]] = [
    {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(PERSON_KEYPOINTS),
        "skeleton": [[a + 1, b + 1] for a, b in PERSON_SKELETON],
    }
]

_PEOPLE = (1, 4)  # least and greatest number in an image
_OBJECTS = (0, 4)  # least and greatest number of objects behind the people
_HEIGHTS = (40, 200)  # pixels, of a standing person
_MAX_HEIGHT = 0.9  # as a fraction of the image side
_BACK_VIEW_PROBABILITY = 0.3
_MAX_YAW = 40.0  # degrees from the front or back view
_MAX_OUTSIDE = 0.15  # fraction of the width or height of a person that can be outside the image
_ATTEMPTS = 20  # at placing one person
_MIN_RADIUS = 0.8  # pixels; a smaller disc could miss all pixel centers
_HIDDEN_EAR_DEPTH = 0.55  # half widths of the head behind its center at which an ear is hidden

_MATERIALS = ("skin", "hair", "shirt", "trousers", "shoes", "eyes", "nose")


class BodyPart(NamedTuple):
    """The points within `radius` of a point, a segment or a convex polygon."""

    points: np.ndarray  # (n, 2) pixels
    radius: float
    material: str
    depth: float  # greater values are nearer to the viewer


class PersonDrawing(NamedTuple):
    """The pixels of a person."""

    materials: np.ndarray  # (S, S) uint8, 1 + index in _MATERIALS; 0 outside the person
    shade: np.ndarray  # (S, S) float32, brightness
    keypoints: np.ndarray  # (17, 3), in COCO's format


def render(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Figure]]:
    """Render an image (S, S, 3) uint8 RGB and its people, from back to front."""
    image = scene.background(rng, size)
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)):
        _, mask = outlines.place_randomly(rng, size, [])
        if mask is not None:
            outlines.paint(rng, image, mask, [])
    people: list[Figure] = []
    for _ in range(rng.integers(_PEOPLE[0], _PEOPLE[1] + 1)):
        drawing = _place_person(rng, size, people)
        if drawing is None:
            continue
        mask = drawing.materials > 0
        _paint_person(rng, image, drawing)
        people = [_hide_behind(person, mask) for person in people]
        people.append(Figure("person", mask, int(mask.sum()), drawing.keypoints))
    return scene.add_camera_noise(rng, image), people


def body_parts(body: Body, height: float, sleeves: str = "shirt", legs: str = "trousers") -> list[BodyPart]:
    """Return the parts of a body, `height` pixels tall, with the hips at the origin.

    sleeves, legs: the materials of forearms and shins.
    """
    joints, (center, crown, look) = body.joints, body.head

    def part(material: str, radius: float, *places: np.ndarray, depth: float | None = None) -> BodyPart:
        points = np.array(places)
        return BodyPart(
            height * points[:, :2], height * radius, material, points[:, 2].mean() if depth is None else depth
        )

    parts = [
        part("shirt", 0.042, *joints[[5, 6, 12, 11]]),
        part("skin", 0.035, body.neck, center, depth=min(body.neck[2], center[2]) - 0.01),
        part("skin", HEAD_HALF_WIDTH, center - 0.022 * crown, center + 0.022 * crown, depth=center[2]),
        part("hair", 1.08 * HEAD_HALF_WIDTH, center, center + 0.055 * crown, depth=center[2] - 0.03 * np.sign(look[2])),
    ]
    for k in (0, 1):
        shoulder, elbow, wrist, hip, knee, ankle = joints[5 + k :: 2][:6]
        parts += [
            part("shirt", 0.037, shoulder, elbow),
            part(sleeves, 0.03, elbow, wrist),
            part("skin", 0.034, body.hands[k], depth=(elbow[2] + wrist[2]) / 2 + 0.001),
            part("trousers", 0.05, hip, knee),
            part(legs, 0.04, knee, ankle),
            part("shoes", 0.033, ankle, body.toes[k]),
            part("skin", 0.027, joints[3 + k]),
        ]
    if look[2] > 0:
        parts += [part("eyes", 0.016, joints[k], depth=center[2] + 0.01) for k in (1, 2)]
        parts.append(part("nose", 0.019, joints[0], depth=center[2] + 0.02))
    return [p._replace(radius=max(p.radius, _MIN_RADIUS)) for p in parts]


def draw_person(parts: list[BodyPart], keypoints: np.ndarray, size: int) -> PersonDrawing:
    """Draw the parts of a person from back to front, in an image of this size.

    keypoints: (17, 3), x and y in continuous pixels. The keypoints of the drawing are in COCO's format, with 0 at the
    center of the first pixel; those outside the image are all 0.
    """
    materials, shade = np.zeros((size, size), np.uint8), np.ones((size, size), np.float32)
    for part in sorted(parts, key=lambda part: part.depth):
        low = np.clip(np.floor(part.points.min(0) - part.radius), 0, size).astype(int)
        high = np.clip(np.ceil(part.points.max(0) + part.radius), 0, size).astype(int)
        area = slice(low[1], high[1]), slice(low[0], high[0])
        away = _distance(part.points, np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5) / part.radius
        inside = away <= 1
        materials[area][inside] = 1 + _MATERIALS.index(part.material)
        shade[area][inside] = (1.05 - 0.4 * away**2)[inside]  # darker at the edges, so that limbs are distinct
    labeled = (keypoints[:, 2] > 0) & ((keypoints[:, :2] >= 0) & (keypoints[:, :2] < size)).all(axis=1)
    positions = np.minimum(np.round(keypoints[:, :2] - 0.5, 2), size - 0.51)  # stay inside after rounding
    coco_keypoints = np.column_stack([positions, keypoints[:, 2]])
    return PersonDrawing(materials, shade, np.where(labeled[:, None], coco_keypoints, 0.0))


def body_keypoints(body: Body, height: float) -> np.ndarray:
    """Return keypoints (17, 3): x and y in pixels from the hips, and visibility as far as the head hides points."""
    visibility = np.full(17, 2.0)
    center, _, look = body.head
    if look[2] <= 0:
        visibility[bodies.FACE_KEYPOINTS] = 0
    visibility[3:5][body.joints[3:5, 2] < center[2] - _HIDDEN_EAR_DEPTH * HEAD_HALF_WIDTH] = 1
    return np.column_stack([height * body.joints[:, :2], visibility])


def _place_person(rng: np.random.Generator, size: int, others: list[Figure]) -> PersonDrawing | None:
    """Return a random person that keeps the others visible; None if no attempt succeeds."""
    tallest = min(_HEIGHTS[1], _MAX_HEIGHT * size)
    for _ in range(_ATTEMPTS):
        height = np.exp(rng.uniform(np.log(min(_HEIGHTS[0], tallest)), np.log(tallest)))
        yaw = rng.uniform(-_MAX_YAW, _MAX_YAW) + 180 * (rng.random() < _BACK_VIEW_PROBABILITY)
        body = bodies.project_body(bodies.draw_pose(rng), yaw, rng.uniform(0, 15))
        parts = body_parts(body, height, str(rng.choice(["shirt", "skin"])), str(rng.choice(["trousers", "skin"])))
        low = np.min([part.points.min(0) - part.radius for part in parts], axis=0)
        extent = np.max([part.points.max(0) + part.radius for part in parts], axis=0) - low
        corner = rng.uniform(*np.sort([-_MAX_OUTSIDE * extent, size - (1 - _MAX_OUTSIDE) * extent], axis=0))
        keypoints = body_keypoints(body, height)
        keypoints[:, :2] += corner - low
        drawing = draw_person([p._replace(points=p.points + corner - low) for p in parts], keypoints, size)
        if scene.keeps_others_visible(drawing.materials > 0, others):
            return drawing
    return None


def _paint_person(rng: np.random.Generator, image: np.ndarray, drawing: PersonDrawing) -> None:
    """Paint a person in random colors."""
    ground = image[drawing.materials > 0].mean(axis=0)
    shirt = scene.contrasting_color(rng, ground)
    skin = np.array([240, 190, 160]) * rng.uniform(0.55, 1) + rng.uniform(-10, 10, 3)
    colors = {
        "skin": (skin, 0.03),
        "hair": (np.array([120, 85, 55]) * rng.uniform(0.15, 0.7), 0.1),
        "shirt": (shirt, 0.2),
        "trousers": (scene.contrasting_color(rng, ground, shirt), 0.15),
        "shoes": (rng.uniform(10, 90, 3), 0.05),
        "eyes": (np.array([15, 15, 25]), 0.0),
        "nose": (skin * [0.9, 0.55, 0.5], 0.0),
    }
    for index, (color, contrast) in enumerate((colors[name] for name in _MATERIALS), 1):
        shade = drawing.shade if contrast else None  # eyes are too small for shading
        scene.fill_texture(rng, image, drawing.materials == index, color, contrast, shade)


def _hide_behind(person: Figure, mask: np.ndarray) -> Figure:
    """Remove `mask` (S, S) from the mask of a person; keypoints under it stay labeled with visibility 1."""
    assert person.keypoints is not None
    keypoints = person.keypoints.copy()
    x, y = np.floor(keypoints[:, :2].T + 0.5).astype(int)
    keypoints[(keypoints[:, 2] == 2) & mask[y, x], 2] = 1
    return person._replace(mask=person.mask & ~mask, keypoints=keypoints)


def _distance(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance (rows, columns) of the pixels (x, y) to a point, a segment or a polygon; 0 inside it."""
    corners = [(float(px), float(py)) for px, py in points]
    columns, rows = x[None, :], y[:, None]
    edges = zip(corners, [*corners[1:], corners[0]], strict=True)
    away = np.min([figures.segment_distance(columns, rows, a, b) for a, b in edges], axis=0)
    return np.where(figures.polygon(*corners)(columns, rows), 0.0, away) if len(corners) > 2 else away
