"""Body poses, and the 3D positions of COCO's 17 keypoints and further points in them.

Lengths are fractions of the height of a standing person. The axes of a body are its left, down and forward; those of
the image are right, down and towards the viewer, so the left hand of a person who faces the viewer is on the right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FACE_KEYPOINTS = slice(0, 3)  # nose and eyes, not visible from behind

HEAD_HALF_WIDTH = 0.082
_SHOULDER, _HIP = 0.115, 0.07  # half the distance between left and right
_SPINE, _NECK = 0.29, 0.12
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.165, 0.15, 0.24, 0.235
_ANGLE_STD = 10.0  # degrees; standard deviation of each angle of a pose


class Limb(NamedTuple):
    """The angles of an arm or a leg, from hanging down: first forward, then out to its side."""

    upper: tuple[float, float]  # degrees: forward, out
    lower: tuple[float, float]


class BodyPose(NamedTuple):
    """The angles of a body in degrees; `arms` and `legs` are left and right."""

    lean: float  # of the trunk, forward
    tilt: float  # of the trunk, to its left
    nod: tuple[float, float]  # of the head relative to the trunk: turn and tilt, to its left
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]


class Body(NamedTuple):
    """A posed body: points (n, 3) on the axes of the image, with the origin between the hips."""

    joints: np.ndarray  # (17, 3)
    toes: np.ndarray  # (2, 3), of the left and the right foot
    hands: np.ndarray  # (2, 3)
    neck: np.ndarray  # (3,)
    head: np.ndarray  # (3, 3): center, and unit vectors to the crown and where the face looks


_HANGING, _RAISED, _ON_HIP = Limb((5, 12), (20, 8)), Limb((0, 145), (0, 168)), Limb((-15, 42), (20, -42))
_OUT, _ON_KNEE = Limb((0, 85), (0, 95)), Limb((20, 12), (65, 4))
_STRAIGHT, _APART, _SEATED = Limb((0, 4), (-4, 3)), Limb((0, 24), (-5, 22)), Limb((78, 10), (0, 6))
_FORE, _HIND = Limb((30, 3), (10, 3)), Limb((-14, 3), (-50, 3))
_POSES: tuple[tuple[float, tuple[Limb, Limb], tuple[Limb, Limb]], ...] = (  # lean, arms, legs
    (0, (_HANGING, _HANGING), (_STRAIGHT, _STRAIGHT)),
    (0, (_RAISED, _RAISED), (_STRAIGHT, _STRAIGHT)),
    (0, (_RAISED, _HANGING), (_STRAIGHT, _APART)),
    (0, (_ON_HIP, _ON_HIP), (_STRAIGHT, _STRAIGHT)),
    (0, (_OUT, _OUT), (_APART, _APART)),
    (0, (_RAISED, _ON_HIP), (_APART, _STRAIGHT)),
    (8, (Limb((-25, 10), (-5, 8)), Limb((30, 10), (60, 8))), (_FORE, _HIND)),
    (5, (_ON_KNEE, _ON_KNEE), (_SEATED, _SEATED)),
    (0, (_HANGING, _RAISED), (_SEATED, _SEATED)),
    (55, (_HANGING, _HANGING), (_STRAIGHT, _STRAIGHT)),
    (35, (_OUT, _HANGING), (_FORE, _STRAIGHT)),
)


def draw_pose(rng: np.random.Generator) -> BodyPose:
    """Draw a random pose: standing, waving, walking, sitting or bent."""
    lean, arms, legs = _POSES[rng.integers(len(_POSES))]
    pose = BodyPose(
        lean + _ANGLE_STD * rng.standard_normal() / 2,
        _ANGLE_STD * rng.standard_normal() / 2,
        (rng.uniform(-15, 15), rng.uniform(-12, 12)),
        (_perturb_limb(rng, arms[0]), _perturb_limb(rng, arms[1])),
        (_perturb_limb(rng, legs[0]), _perturb_limb(rng, legs[1])),
    )
    return mirror_pose(pose) if rng.random() < 0.5 else pose


def mirror_pose(pose: BodyPose) -> BodyPose:
    """Return the pose of the mirror image."""
    (turn, tilt), (left_arm, right_arm), (left_leg, right_leg) = pose.nod, pose.arms, pose.legs
    return BodyPose(pose.lean, -pose.tilt, (-turn, -tilt), (right_arm, left_arm), (right_leg, left_leg))


def project_body(pose: BodyPose, yaw: float, pitch: float) -> Body:
    """Return the body turned by `yaw` degrees to its left from facing the viewer, seen from `pitch` degrees above."""
    trunk = _rotation(0, pose.tilt, pose.lean)
    head = trunk @ _rotation(pose.nod[0], pose.nod[1], -0.5 * pose.lean)  # people look ahead when they bend
    neck = trunk @ np.array([0, -_SPINE, 0])
    center = neck + 0.5 * trunk @ np.array([0, -_NECK, 0]) + 0.5 * head @ np.array([0, -_NECK, 0])
    face = (
        np.array([[0, 0.15, 0.98], [0.45, -0.25, 0.85], [-0.45, -0.25, 0.85], [1.02, 0, 0], [-1.02, 0, 0]])
        * HEAD_HALF_WIDTH
    )
    joints, hands, toes = np.empty((17, 3)), np.empty((2, 3)), np.empty((2, 3))
    joints[:5] = center + face @ head.T
    for k, side in enumerate((1, -1)):
        joints[5 + k] = neck + trunk @ np.array([side * _SHOULDER, 0, 0])
        upper, lower = (_direction(angles, side) for angles in pose.arms[k])
        joints[7 + k] = joints[5 + k] + _UPPER_ARM * upper
        joints[9 + k] = joints[7 + k] + _FOREARM * lower
        hands[k] = joints[9 + k] + 0.03 * lower
        upper, lower = (_direction(angles, side) for angles in pose.legs[k])
        joints[11 + k] = side * _HIP, 0, 0
        joints[13 + k] = joints[11 + k] + _THIGH * upper
        joints[15 + k] = joints[13 + k] + _SHIN * lower
        toes[k] = joints[15 + k] + np.array([side * 0.02, 0.03, 0.085])
    axes = np.stack([head @ np.array([0, -1, 0]), head @ np.array([0, 0, 1])])
    view = _rotation(0, 0, pitch) @ _rotation(yaw, 0, 0)
    return Body(joints @ view.T, toes @ view.T, hands @ view.T, view @ neck, np.vstack([center, axes]) @ view.T)


def _perturb_limb(rng: np.random.Generator, limb: Limb) -> Limb:
    """Return the limb with random changes of all angles."""
    (a, b), (c, d) = limb
    e, f, g, h = _ANGLE_STD * rng.standard_normal(4)
    return Limb((a + e, b + f), (c + e + g, d + f + h))


def _direction(angles: tuple[float, float], side: int) -> np.ndarray:
    """Return the direction of half a limb, down for angles of 0; `side` is 1 for the left and -1 for the right."""
    forward, out = np.radians(angles)
    return np.array([side * np.sin(out), np.cos(out) * np.cos(forward), np.cos(out) * np.sin(forward)])


def _rotation(turn: float, tilt: float, lean: float) -> np.ndarray:
    """Return the matrix (3, 3) that leans forward, then tilts to the left, then turns to the left, in degrees."""
    (ct, cs, cl), (st, ss, sl) = np.cos(np.radians([turn, tilt, lean])), np.sin(np.radians([turn, tilt, lean]))
    about_left = np.array([[1, 0, 0], [0, cl, sl], [0, -sl, cl]])
    about_front = np.array([[cs, -ss, 0], [ss, cs, 0], [0, 0, 1]])
    about_down = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
    return about_down @ about_front @ about_left
