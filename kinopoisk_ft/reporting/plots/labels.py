"""Places for the labels of points, such that no label covers another or a point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

CLEARANCE = (8.0, 3.0)  # px between a label and anything else, across and upwards
LINE_STEPS = 16  # points at which a line to a label is tested
NEAR = (9, 16, 26, 40, 58, 80, 110)  # px from a point to the nearest side of its label
DIRECTIONS = 12
GRID = 12  # px between the places tried when nothing near a point is free


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def centre(self) -> tuple[float, float]:
        """Return the middle of the box."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def distance(self, other: Box) -> float:
        """Return the gap between two boxes, 0 where they touch."""
        across = max(self.left - other.right, other.left - self.right, 0.0)
        upwards = max(self.bottom - other.top, other.bottom - self.top, 0.0)
        return math.hypot(across, upwards)

    def overlaps(self, other: Box, clearance: tuple[float, float] = (0.0, 0.0)) -> bool:
        """Return whether two boxes come closer than the clearance, across and upwards."""
        across, upwards = clearance
        return (
            self.left < other.right + across
            and other.left < self.right + across
            and self.bottom < other.top + upwards
            and other.bottom < self.top + upwards
        )

    def holds(self, point: tuple[float, float]) -> bool:
        """Return whether a point lies inside."""
        return self.left < point[0] < self.right and self.bottom < point[1] < self.top

    def within(self, other: Box) -> bool:
        """Return whether this box lies inside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def place(marks: Sequence[Box], sizes: Sequence[tuple[float, float]], frame: Box) -> list[Box]:
    """Return a box of each size, near its mark, inside the frame and clear of everything else.

    Marks (what is drawn for a point), sizes (width, height) and frame are in pixels. Where the
    frame is too full the last labels overlap: the caller chooses its height by their number.
    """
    placed: dict[int, Box] = {}
    for i in sorted(range(len(marks)), key=lambda i: (-marks[i].top, marks[i].left)):
        boxes = list(_candidates(marks[i].centre, sizes[i], frame))
        free = [
            box
            for box in boxes
            if box.within(frame)
            and not any(box.overlaps(mark) for mark in marks)
            and not any(box.overlaps(other, CLEARANCE) for other in placed.values())
        ]
        lines = [_line(marks[j], box) for j, box in placed.items()]
        apart = (box for box in free if not _crossed(box, marks[i], placed.values(), lines))
        placed[i] = next(apart, (free or boxes)[0])
    return [placed[i] for i in range(len(marks))]


def _crossed(
    box: Box, mark: Box, others: Iterable[Box], lines: list[list[tuple[float, float]]]
) -> bool:
    """Return whether the label's line crosses another label, or another's line crosses it."""
    line = _line(mark, box)
    return any(box.holds(point) for other in lines for point in other) or any(
        other.holds(point) for other in others for point in line
    )


def _line(mark: Box, label: Box) -> list[tuple[float, float]]:
    """Return points on the line from the middle of a mark to the middle of its label."""
    (x, y), (to_x, to_y) = mark.centre, label.centre
    shares = [step / LINE_STEPS for step in range(LINE_STEPS + 1)]
    return [(x + share * (to_x - x), y + share * (to_y - y)) for share in shares]


def _candidates(point: tuple[float, float], size: tuple[float, float], frame: Box) -> Iterator[Box]:
    """Yield boxes around the point, the nearest first, then all over the frame."""
    x, y = point
    width, height = size
    for distance in NEAR:
        for number in range(DIRECTIONS):
            angle = 2 * math.pi * number / DIRECTIONS
            # The label's side, not its middle, keeps the distance.
            cx = x + math.cos(angle) * (distance + width / 2)
            cy = y + math.sin(angle) * (distance + height / 2)
            yield _box(cx, cy, size)
    columns = range(int((frame.right - frame.left) / GRID))
    rows = range(int((frame.top - frame.bottom) / GRID))
    centres = [(frame.left + GRID * c, frame.bottom + GRID * r) for c in columns for r in rows]
    for cx, cy in sorted(centres, key=lambda c: math.hypot(c[0] - x, c[1] - y)):
        yield _box(cx, cy, size)


def _box(cx: float, cy: float, size: tuple[float, float]) -> Box:
    width, height = size
    return Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
