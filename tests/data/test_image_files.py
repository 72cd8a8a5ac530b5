"""Tests of image decoding, and of the refusal of truncated, damaged, missing and wrongly sized files."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mrcnn_jax.data import image_files, image_formats
from mrcnn_jax.data.annotations import MAX_PIXELS, ImageEntry
from mrcnn_jax.data.image_formats import FORMATS
from mrcnn_jax.tools.convert import files

RNG = np.random.default_rng(0)
# Smooth, so that JPEG comes close, and of odd sides.
PICTURE = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), np.uint8)).resize((83, 61), Image.Resampling.BICUBIC)
ALPHA = Image.fromarray(RNG.integers(0, 256, (61, 83), np.uint8))
DEEP = (np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8) | 0x5A
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(content: bytes) -> np.ndarray:
    """The picture as Pillow has it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def with_alpha(mode: str) -> Image.Image:
    image = PICTURE.convert(mode)
    image.putalpha(ALPHA)
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def entry(width: int = 83, height: int = 61, name: str = "a.jpg") -> ImageEntry:
    return ImageEntry(7, name, height, width, [])


CMYK = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)  # with the inks inverted, as Adobe's segment says
ADOBE = CMYK.find(b"\xff\xee")
assert CMYK[ADOBE + 4 : ADOBE + 9] == b"Adobe"
YCCK = CMYK[: ADOBE + 15] + b"\2" + CMYK[ADOBE + 16 :]

KINDS = {
    "JPEG": encoded(PICTURE, "JPEG", quality=95),
    "JPEG progressive": encoded(PICTURE, "JPEG", quality=95, progressive=True),
    "JPEG 4:4:4": encoded(PICTURE, "JPEG", quality=95, subsampling=0),
    "JPEG gray": encoded(PICTURE.convert("L"), "JPEG", quality=95),
    "JPEG RGB": encoded(PICTURE, "JPEG", quality=95, keep_rgb=True),
    "JPEG CMYK": CMYK,
    "JPEG CMYK not inverted": CMYK[:ADOBE] + CMYK[ADOBE + 16 :],
    "JPEG YCCK": YCCK,
    "PNG": encoded(PICTURE, "PNG"),
    "PNG gray": encoded(PICTURE.convert("L"), "PNG"),
    "PNG 1 bit": encoded(PICTURE.convert("1"), "PNG"),
    "PNG palette": encoded(PICTURE.quantize(16), "PNG"),
    "PNG palette, one transparent": encoded(PICTURE.quantize(16), "PNG", transparency=3),
    "PNG palette, some transparent": encoded(PICTURE.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
    "PNG gray, one transparent": encoded(PICTURE.convert("L"), "PNG", transparency=100),
    "PNG RGBA": encoded(with_alpha("RGB"), "PNG"),
    "PNG LA": encoded(with_alpha("L"), "PNG"),
    "BMP": encoded(PICTURE, "BMP"),
    "BMP palette": encoded(PICTURE.quantize(16), "BMP"),
    "TIFF": encoded(PICTURE, "TIFF"),
    "TIFF LZW": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "TIFF CMYK": encoded(PICTURE.convert("CMYK"), "TIFF"),
    "WebP": encoded(PICTURE, "WEBP"),
    "WebP RGBA": encoded(with_alpha("RGB"), "WEBP", lossless=True),
    "GIF": encoded(PICTURE.quantize(64), "GIF"),
    "GIF film": encoded(PICTURE.quantize(64), "GIF", save_all=True, append_images=[PICTURE.rotate(180).quantize(64)]),
    "one pixel": encoded(PICTURE.crop((0, 0, 1, 1)), "PNG"),
    "one pixel JPEG": encoded(PICTURE.crop((0, 0, 1, 1)), "JPEG"),
    "a strip": encoded(PICTURE.resize((20000, 30)), "JPEG", quality=95),
    "a strip PNG": encoded(PICTURE.resize((20000, 30)), "PNG"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # of the reference
def test_files_are_decoded_as_a_viewer_shows_them(name: str) -> None:
    expected, pixels = seen(KINDS[name]), image_files.decode(KINDS[name])
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, expected, atol=2)  # of decoders of JPEG


def test_cmyk_becomes_rgb() -> None:
    printed = np.asarray(PICTURE.convert("CMYK").convert("RGB"))
    np.testing.assert_allclose(image_files.decode(CMYK), printed, atol=12)  # JPEG of quality 95


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    deep = DEEP.copy()
    deep[0, :2] = 0, 65535
    pixels = image_files.decode(encoded(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(pixels, np.repeat((deep >> 8)[..., None], 3, axis=2))


def test_sixteen_bits_of_three_colors() -> None:
    import cv2

    deep = np.stack([DEEP, DEEP[::-1], 65535 - DEEP], axis=2)
    for suffix in (".png", ".tiff"):
        content = cv2.imencode(suffix, deep[..., ::-1])[1].tobytes()
        np.testing.assert_array_equal(image_files.decode(content), deep >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encoded(PICTURE, kind, exif=turned(orientation), **options)
    stored = Image.fromarray(seen(encoded(PICTURE, kind, **options)))
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    assert expected.shape == ((83, 61, 3) if orientation >= 5 else (61, 83, 3))
    np.testing.assert_allclose(image_files.decode(content), expected, atol=2)
    assert image_files.check_image(content, entry(*expected.shape[1::-1])).refusal is None


def xmp(orientation: int) -> bytes:
    """A packet as image editors write it, for the orientation alone."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def with_xmp(kind: str, packet: bytes, **options: Any) -> bytes:
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet.decode())
        return encoded(PICTURE, kind, pnginfo=text, **options)
    more = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    return encoded(PICTURE, kind, xmp=packet, **more, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [None, 1, 3])
def test_xmp_decides_where_exif_says_nothing(tmp_path: Path, kind: str, exif: int | None) -> None:
    """As Pillow has it, in decoding, reduced too, in converting and in check."""
    content = with_xmp(kind, xmp(6), **({} if exif is None else {"exif": turned(exif)}))
    expected = seen(content)
    height, width = (83, 61) if exif is None else (61, 83)
    assert expected.shape == (height, width, 3)
    np.testing.assert_allclose(image_files.decode(content), expected, atol=2)
    assert image_files.decode(content, 2).shape == (-(-height // 2), -(-width // 2), 3)  # type: ignore[union-attr]
    (tmp_path / "a").write_bytes(content)
    assert files.image_size(tmp_path / "a") == (height, width)
    assert image_files.check_image(content, entry(width, height)).refusal is None
    refusal = image_files.check_image(content, entry(height, width)).refusal
    assert refusal is not None
    assert ("the size before the rotation by EXIF or XMP" in refusal.advice) == (exif is None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_conversion_finds_the_size_that_decoding_gives(tmp_path: Path, kind: str, orientation: int) -> None:
    if kind == "AVIF" and kind not in FORMATS:
        pytest.skip("this Pillow does not read AVIF")
    content = encoded(PICTURE, kind, exif=turned(orientation))
    (tmp_path / "a").write_bytes(content)
    assert files.image_size(tmp_path / "a") == seen(content).shape[:2] == image_files.decode(content).shape[:2]  # type: ignore[union-attr]


def test_an_orientation_behind_the_pixels_of_a_png_counts_everywhere(tmp_path: Path) -> None:
    content = encoded(PICTURE, "PNG", exif=turned(6))
    start = content.find(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]  # before the last chunk
    (tmp_path / "a.png").write_bytes(moved)
    assert seen(moved).shape == (83, 61, 3)
    np.testing.assert_array_equal(image_files.decode(moved), seen(moved))
    assert files.image_size(tmp_path / "a.png") == (83, 61)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_pictures_the_first_is_used_and_check_says_so(kind: str) -> None:
    first, second = (image.quantize(64) if kind == "GIF" else image for image in (PICTURE, PICTURE.rotate(180)))
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second, second], **options)
    np.testing.assert_array_equal(image_files.decode(content), seen(encoded(first, kind, **options)))
    (warning,) = image_files.check_image(content, entry()).warnings
    assert warning.kind == "image files with several frames, of which the first is used"
    assert warning.item.startswith("a.jpg (id 7) has ")
    assert not image_files.check_image(encoded(first, kind, **options), entry()).warnings


def test_jpeg_preview_is_not_a_second_frame() -> None:
    content = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.resize((16, 12))])
    assert image_files.check_image(content, entry()).warnings == ()


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(83, 61), (64, 48), (65, 49), (1, 9), (7, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_reduced_sizes_are_rounded_up(kind: str, size: tuple[int, int], reduction: int) -> None:
    for orientation in (1, 6):
        content = encoded(PICTURE.resize(size), kind, exif=turned(orientation))
        whole, reduced = image_files.decode(content), image_files.decode(content, reduction)
        assert whole is not None
        assert reduced is not None
        assert reduced.shape == (-(-whole.shape[0] // reduction), -(-whole.shape[1] // reduction), 3)


@pytest.mark.parametrize("name", ["JPEG 4:4:4", "JPEG CMYK", "PNG", "TIFF"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_pixels_are_means_of_squares(name: str, reduction: int) -> None:
    whole, reduced = image_files.decode(KINDS[name]), image_files.decode(KINDS[name], reduction)
    assert whole is not None
    filled = np.pad(whole, ((0, -61 % reduction), (0, -83 % reduction), (0, 0)), mode="edge").astype(float)
    height, width = filled.shape[0] // reduction, filled.shape[1] // reduction
    means = filled.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))
    inner = slice(None, -1)  # JPEG files say themselves what lies beyond the edge
    rounding = 4 if name == "JPEG 4:4:4" else 1  # of coefficients, and of three colors made of three others
    np.testing.assert_allclose(reduced[inner, inner], means[inner, inner], atol=rounding)  # type: ignore[index]


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "JPEG CMYK", *LOSSLESS])
def test_a_file_that_is_cut_off_is_refused(name: str) -> None:
    content = KINDS[name] if name in KINDS else encoded(PICTURE, name)
    assert image_files.check_image(content, entry()).refusal is None
    whole = len(content)
    for length in (1, 3, 20, whole // 3, whole // 2, whole * 19 // 20, *([whole - 1] if name[:4] == "JPEG" else [])):
        assert image_files.decode(content[:length]) is None, length
        assert image_files.decode(content[:length], 2) is None, length
        refusal = image_files.check_image(content[:length], entry()).refusal
        assert refusal is not None
        assert refusal.kind == "image files that cannot be read"
        assert refusal.item.startswith("a.jpg (id 7): ")
        assert refusal.advice == "replace the files, or remove the images from the JSON"
        assert refusal.image_id == 7


def test_a_preview_does_not_end_a_jpeg_that_is_cut_off() -> None:
    preview = encoded(PICTURE.resize((16, 12)), "JPEG")
    exif = b"Exif\0\0" + preview  # its end marker comes long before that of the picture
    content = encoded(PICTURE, "JPEG", exif=exif)
    assert content.find(b"\xff\xd9") < 1000 < len(content)
    assert image_files.decode(content) is not None
    assert image_files.decode(content[: len(content) * 3 // 4]) is None


@pytest.mark.parametrize("tail", [b"\n", bytes(1000), b"<html>", bytes(range(255, 205, -1))])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_trailing_bytes_are_ignored(name: str, tail: bytes) -> None:
    content = KINDS[name] + tail
    np.testing.assert_array_equal(image_files.decode(content), image_files.decode(KINDS[name]))
    assert image_files.check_image(content, entry()).refusal is None


def test_jpeg_ending_in_zeros_is_refused() -> None:
    content = KINDS["JPEG"]
    half = len(content) // 2
    assert image_files.decode(content[:half] + bytes(len(content) - half)) is None


def test_jpeg_with_invalid_data_is_refused() -> None:
    content = bytearray(KINDS["JPEG"])
    scan = content.rfind(b"\xff\xda")
    content[scan + 100 : scan + 104] = b"\xff\xc4\x00\x00"  # a table without room for its own length
    refusal = image_files.check_image(bytes(content), entry()).refusal
    assert refusal is not None
    assert refusal.item == "a.jpg (id 7): broken data stream when reading image file"


def test_a_png_whose_bits_are_flipped_is_refused() -> None:
    content = bytearray(KINDS["PNG"])
    content[len(content) // 2] ^= 1
    assert image_files.decode(bytes(content)) is None
    assert image_files.check_image(bytes(content), entry()).refusal is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>404</title>", "it is not one of BMP, GIF, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not one of BMP, GIF, JPEG"),  # never run
        (b"\xff\xd8\xff", "it is not one of"),
        (bytes(4) + b"ftypisom" + bytes(50), "it is a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer: run git lfs pull"),
        (b"II*\0" + bytes(50), "it is a TIFF file of an unsupported type"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), ""),
    ],
)
def test_file_that_is_not_an_image_is_refused(content: bytes, reason: str) -> None:
    assert image_files.decode(content) is None
    refusal = image_files.check_image(content, entry()).refusal
    assert refusal is not None
    assert refusal.kind == "image files that cannot be read"
    assert refusal.item.startswith(f"a.jpg (id 7): {reason}")


def test_a_heic_picture_is_read_with_its_plugin_and_else_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words from prediction (`explain`), check and training (`judge`), and conversion."""
    content = bytes(4) + b"ftypheic" + bytes(50)
    monkeypatch.setattr(image_formats, "FORMATS", tuple(name for name in FORMATS if name != "HEIF"))
    monkeypatch.setattr(image_files, "FORMATS", image_formats.FORMATS)
    words = "it is a HEIC image, which needs a package: pip install pillow-heif"
    assert image_files.decode(content) is None
    assert image_files.explain_decode_failure(content) == words
    refusal = image_files.check_image(content, entry(name="a.heic")).refusal
    assert refusal is not None
    assert refusal.item == f"a.heic (id 7): {words}"
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(files.ConversionError) as rejected:
        files.image_size(tmp_path / "a.heic")
    assert rejected.value.refusal.item == f"a.heic ({words})"


def test_heic_pictures_are_read_where_the_plugin_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    content = encoded(PICTURE, "HEIF", quality=-1, exif=turned(6))
    np.testing.assert_array_equal(image_files.decode(content), seen(content))
    (tmp_path / "a.heic").write_bytes(content)
    assert files.image_size(tmp_path / "a.heic") == seen(content).shape[:2]


def bomb(kind: str) -> bytes:
    """A file whose header says 20000 x 20000, and little more."""
    content = bytearray(encoded(Image.new("RGB", (16, 16)), kind))
    if kind == "JPEG":
        frame = content.find(b"\xff\xc0")
        content[frame + 5 : frame + 9] = (20000).to_bytes(2, "big") * 2
    else:
        import zlib

        content[16:24] = (20000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_large_image_is_refused_without_decoding(tmp_path: Path, kind: str) -> None:
    assert image_files.decode(bomb(kind)) is None
    refusal = image_files.check_image(bomb(kind), entry()).refusal
    assert refusal is not None
    assert refusal.kind == f"images of more than {MAX_PIXELS} pixels"
    assert refusal.item == "a.jpg (id 7)"
    assert refusal.advice == "cut them into tiles, or scale them down"
    words = f"it has more than {MAX_PIXELS} pixels: cut it into tiles, or scale it down"
    assert image_files.explain_decode_failure(bomb(kind)) == words
    (tmp_path / "a").write_bytes(bomb(kind))
    with pytest.raises(files.ConversionError) as rejected:
        files.image_size(tmp_path / "a")
    assert rejected.value.refusal.item == f"a ({words})"


def test_another_size_is_refused() -> None:
    refusal = image_files.check_image(KINDS["JPEG"], entry(width=82)).refusal
    assert refusal is not None
    assert refusal.kind == "images whose size (height x width) differs from the JSON"
    assert refusal.item == "a.jpg (id 7) is 61x83, not 61x82"
    assert refusal.advice == "correct height and width in the JSON"
    assert refusal.image_id == 7


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_size_before_the_exif_rotation_is_refused_with_what_it_means(kind: str) -> None:
    content = encoded(PICTURE, kind, exif=turned(6))
    assert image_files.check_image(content, entry(61, 83)).refusal is None
    refusal = image_files.check_image(content, entry(83, 61)).refusal
    assert refusal is not None
    assert refusal.item == "a.jpg (id 7) is 83x61, not 61x83"
    assert (
        "remove the orientation from the files if the annotations fit the images before the rotation" in refusal.advice
    )
    swapped = image_files.check_image(KINDS[kind], entry(61, 83)).refusal  # nothing turns this one
    assert swapped is not None
    assert swapped.advice == "correct height and width in the JSON"


def test_a_folder_is_examined_in_order(tmp_path: Path) -> None:
    images = []
    for i in range(40):
        width = 20 + i
        (tmp_path / f"{i}.png").write_bytes(encoded(PICTURE.resize((width, 30)), "PNG"))
        images.append(ImageEntry(i, f"{i}.png", 30, width + (i % 7 == 3), []))
    (tmp_path / "5.png").unlink()
    (tmp_path / "6.png").write_bytes(b"")
    (tmp_path / "8.png").unlink()
    (tmp_path / "8.png").mkdir()
    images[9] = ImageEntry(9, "9.png/a.png", 30, 29, [])
    images[11] = ImageEntry(11, "x" * 300, 30, 31, [])
    found = [one.refusal for one in image_files.check_images(tmp_path, images)]
    assert [r and r.image_id for r in found] == [i if i % 7 == 3 or i in (5, 6, 8, 9, 11) else None for i in range(40)]
    kinds = {r.image_id: (r.kind, r.item) for r in found if r}
    assert kinds[5] == (f"images that are not in {tmp_path}", "5.png (id 5)")
    assert kinds[9] == (f"images that are not in {tmp_path}", "9.png/a.png (id 9)")
    assert kinds[6] == ("image files that cannot be read", "6.png (id 6): it is empty")
    assert kinds[8] == ("image files that cannot be read", "8.png (id 8): Is a directory")
    assert kinds[11][0] == "image files that cannot be read"


def test_few_files_are_read_ahead_and_none_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, lock = [], threading.Lock()

    def judge(content: bytes, image: ImageEntry) -> None:
        with lock:
            read.append(image.id)

    monkeypatch.setattr(image_files, "check_image", judge)
    (tmp_path / "a").write_bytes(b"")
    results = image_files.check_images(tmp_path, [ImageEntry(i, "a", 1, 1, []) for i in range(1000)])
    assert next(results) is None
    results.close()  # type: ignore[attr-defined]
    assert len(read) < 30


def test_check_images_of_an_empty_list(tmp_path: Path) -> None:
    assert list(image_files.check_images(tmp_path, [])) == []


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:PIL.Image.DecompressionBombWarning")  # Pillow's
def test_accepted_images_can_be_decoded_at_every_reduction() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for i in range(400):
        kind = ("JPEG", "PNG", "TIFF", "WEBP")[i % 4]
        content = bytearray(encoded(PICTURE, kind, exif=turned(6)))
        for place in rng.integers(3, min(len(content), 400), rng.integers(0, 4)):  # in the headers, mostly
            content[place] = rng.choice([0, 255, rng.integers(256)])
        if image_files.check_image(bytes(content), entry(61, 83)).refusal is None:
            passed += 1
            for reduction in (1, 2, 4, 8):
                pixels = image_files.decode(bytes(content), reduction)
                assert pixels is not None
                assert pixels.shape == (-(-83 // reduction), -(-61 // reduction), 3)
    assert 100 < passed < 400


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_counted_without_decoding(kind: str) -> None:
    content = encoded(PICTURE, kind)
    assert image_formats.count_pixels(content) == 83 * 61
    assert image_formats.count_pixels(content[:4]) == 0


def test_pixels_of_an_image_that_pillow_refuses_are_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert image_formats.count_pixels(encoded(PICTURE, "PNG")) == MAX_PIXELS + 1
