"""Supported image formats, detection of a file's format, decoding errors, and image orientation."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError, features

from mrcnn_jax.errors import PixelRangeError, format_value

MAX_PIXELS = 2 * 89_478_485  # Pillow refuses larger images as decompression bombs
HEADER_BYTES = 64  # length of the beginning of a file that `detect_kind` needs
DAMAGED = "it is truncated or damaged"
JPEG = b"\xff\xd8\xff"
_COMMON_SUFFIXES = (".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SUFFIXES = (*_COMMON_SUFFIXES, ".avif", ".heic", ".heif", ".pbm", ".pgm", ".pnm", ".ppm")

_ORIENTATION = 0x0112  # EXIF tag
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGES = (b"GIF8", JPEG, b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\x89PNG\r\n\x1a\n", *_TIFF)
_LFS = b"version https://git-lfs"
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_VIDEOS = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11", b"FLV\1")
_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_PNG_ORIENTATION = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")  # can follow the pixels


def _supported_formats() -> tuple[str, ...]:
    """Return the format names for Pillow, which would otherwise also run PostScript."""
    names = ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
    if "avif" in features.modules and features.check("avif"):
        names.append("AVIF")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        names.append("HEIF")
    return tuple(names)


FORMATS = _supported_formats()


def detect_kind(head: bytes) -> Literal["image", "video"] | None:
    """Return whether a file with these first HEADER_BYTES is an image or a video; None if it is neither."""
    if head.startswith(_IMAGES) or _is_bmp(head) or _is_pnm(head) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head.startswith(_VIDEOS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    if brand := _container_brand(head):
        return "image" if brand in _AVIF + _HEIC else "video"
    return None


def describe_error(content: bytes, error: Exception) -> str:
    """Return why a file cannot be decoded, given the exception that Pillow raised."""
    if not content:
        return "it is empty"
    if isinstance(error, PixelRangeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS} pixels: cut it into tiles, or scale it down"
    if isinstance(error, UnidentifiedImageError):
        return _describe_unidentified(content)
    return format_value(str(error) or type(error).__name__)


def orientation(image: Image.Image) -> int:
    """Return the orientation 1..8 from EXIF, or from XMP if EXIF has none; 1 if it cannot be read, as viewers do."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers raise many types
        return 1
    return value if value in range(1, 9) else 1


def count_pixels(content: bytes) -> int:
    """Return the number of pixels from the header of an image file; MAX_PIXELS + 1 for more, 0 without a header."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:  # Pillow's readers raise many types
        return 0


def upright_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image as `image_files.decode` returns it, from the header for most formats.

    Raises exceptions of any type for a file that cannot be read.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow has applied the orientation to `size`
            width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
        if image.format == "PNG" and not any(name in path.read_bytes() for name in _PNG_ORIENTATION):
            swapped = False  # `orientation` would decode the pixels to find this out
        else:
            swapped = orientation(image) >= 5
        return (width, height) if swapped else (height, width)


def _describe_unidentified(content: bytes) -> str:
    """Return why Pillow cannot identify the format of a file."""
    brand = _container_brand(content[:HEADER_BYTES])
    if brand in _HEIC and "HEIF" not in FORMATS:
        return "it is a HEIC image, which needs a package: pip install pillow-heif"
    if brand in _AVIF and "AVIF" not in FORMATS:
        return "it is an AVIF image, which needs a newer Pillow: pip install 'pillow>=11.3'"
    if brand in _AVIF + _HEIC:
        return DAMAGED
    if content.startswith(_LFS):
        return "it is a Git LFS pointer: run git lfs pull"
    if content.startswith(_TIFF):
        return "it is a TIFF file of an unsupported type: write 8 or 16 bits, or one channel of 32-bit floats"
    if detect_kind(content[:HEADER_BYTES]) == "video":
        return "it is a video"
    return f"it is not one of {', '.join(FORMATS)}"


def _is_bmp(head: bytes) -> bool:
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _is_pnm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3].isspace()


def _container_brand(head: bytes) -> bytes:
    """Return the brand of an ISO media file, such as MP4 or HEIC; empty for other files."""
    position = head.find(b"ftyp")
    return head[position + 4 : position + 8] if head[:1] == b"\0" and position >= 0 else b""
