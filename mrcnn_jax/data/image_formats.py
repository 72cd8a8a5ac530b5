"""Which image files can be read, what a file is by its first bytes, why one cannot be read, and which way up it is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError, features

from mrcnn_jax.errors import PixelRangeError, shown

# More than this Pillow takes for an attempt to fill the memory, and refuses to decode. OpenCV's own bound is higher.
MOST_PIXELS = 2 * 89_478_485
MOST_BYTES = 64  # of a file's beginning that say what it is
JPEG = b"\xff\xd8\xff"
_USUAL = (".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SUFFIXES = (*_USUAL, ".avif", ".heic", ".heif", ".pbm", ".pgm", ".pnm", ".ppm")
UPRIGHT = {  # what to do with the stored pixels, by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ORIENTATION = 0x0112  # the EXIF tag
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGES = (b"GIF8", JPEG, b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\x89PNG\r\n\x1a\n", *_TIFF)
_LFS = b"version https://git-lfs"
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_VIDEOS = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11", b"FLV\1")
_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_PNG_ORIENTATION = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")  # may come after the pixels


def _readable() -> tuple[str, ...]:
    """Names of the formats, as Pillow has them; no others: one runs PostScript."""
    names = ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
    if "avif" in features.modules and features.check("avif"):
        names.append("AVIF")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        names.append("HEIF")
    return tuple(names)


FORMATS = _readable()


def kind(head: bytes) -> Literal["image", "video"] | None:
    """What a file is that begins with `head` (MOST_BYTES of it); None: neither an image nor a video."""
    if head.startswith(_IMAGES) or _is_bmp(head) or _is_pnm(head) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head.startswith(_VIDEOS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    if brand := _brand(head):
        return "image" if brand in _AVIF + _HEIC else "video"
    return None


def reason(content: bytes, error: Exception) -> str:
    """Why a file cannot be read, of which Pillow says `error`."""
    if not content:
        return "it is empty"
    if isinstance(error, PixelRangeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MOST_PIXELS} pixels: cut it into tiles, or scale it down"
    if isinstance(error, UnidentifiedImageError):
        brand = _brand(content[:MOST_BYTES])
        if brand in _HEIC and "HEIF" not in FORMATS:
            return "it is a HEIC picture, which takes a package: pip install pillow-heif"
        if brand in _AVIF and "AVIF" not in FORMATS:
            return "it is an AVIF picture, which takes a newer Pillow: pip install 'pillow>=11.3'"
        if brand in _AVIF + _HEIC:
            return "it is cut off or broken"
        if content.startswith(_LFS):
            return "it is a Git LFS pointer, not the file itself: git lfs pull"
        if content.startswith(_TIFF):
            return (
                "it is a TIFF file of a kind that cannot be read: write 8 or 16 bits, or one channel of 32-bit floats"
            )
        if kind(content[:MOST_BYTES]) == "video":
            return "it is a video"
        return f"it is none of {', '.join(FORMATS)}"
    return shown(str(error) or type(error).__name__)


def orientation(image: Image.Image) -> int:
    """1..8, by EXIF, or by XMP where EXIF says nothing; 1 for what is unreadable, which viewers do not mind."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever its readers stumble over
        return 1
    return found if found in UPRIGHT else 1


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as `image_files.decode` gives it; of most formats only the header is read.

    Raises anything for a file that cannot be read.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if image.format == "TIFF":  # which Pillow has turned already
            width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
        if image.format == "PNG" and not any(name in path.read_bytes() for name in _PNG_ORIENTATION):
            turned = False  # to be sure of it, Pillow would decode the pixels
        else:
            turned = orientation(image) >= 5
        return (width, height) if turned else (height, width)


def _is_bmp(head: bytes) -> bool:
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _is_pnm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3].isspace()


def _brand(head: bytes) -> bytes:
    """Of a file made of ISO's boxes, as MP4 and HEIC are; empty for others."""
    place = head.find(b"ftyp")
    return head[place + 4 : place + 8] if head[:1] == b"\0" and place >= 0 else b""
