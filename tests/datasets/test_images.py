"""Image files of every kind: what is read, what is refused, and how much memory that takes."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import build_dataset, check
from datasets.images import MOST_PIXELS, image_size, read_image
from util.errors import InputError

from .small_set import photo_path

ROOT = Path(datasets.__file__).resolve().parents[1]


@pytest.fixture
def smooth() -> np.ndarray:
    """(48, 64, 3) uint8 with red to the right, green downwards."""
    image = np.full((48, 64, 3), 60, np.uint8)
    image[..., 0], image[..., 1] = np.linspace(0, 240, 64), np.linspace(0, 240, 48)[:, None]
    return image


def save(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def sixteen_bit(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def turned_tag() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    return exif


KINDS = {  # file from an image, how far a pixel may be off
    "jpeg": (lambda x: save(Image.fromarray(x), "JPEG", quality=95), 12),
    "progressive": (lambda x: save(Image.fromarray(x), "JPEG", quality=95, progressive=True), 12),
    "cmyk": (lambda x: save(Image.fromarray(x).convert("CMYK"), "JPEG", quality=95), 16),
    "turned": (lambda x: save(Image.fromarray(x), "JPEG", quality=95, exif=turned_tag()), 12),
    "png": (lambda x: save(Image.fromarray(x), "PNG"), 0),
    "16 bit": (sixteen_bit, 0),
    "opaque": (lambda x: save(Image.fromarray(x).convert("RGBA"), "PNG"), 0),
    "palette": (lambda x: save(Image.fromarray(x).quantize(200), "PNG"), 30),
    "webp": (lambda x: save(Image.fromarray(x), "WEBP", lossless=True), 0),
    "bmp": (lambda x: save(Image.fromarray(x), "BMP"), 0),
    "tiff": (lambda x: save(Image.fromarray(x), "TIFF"), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_stored_pixels(tmp_path, smooth, kind):
    make, off = KINDS[kind]
    path = tmp_path / "image"
    path.write_bytes(make(smooth))
    assert image_size(path) == (64, 48)
    image = read_image(path)
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - smooth).max() <= off


@pytest.mark.parametrize(
    "form", [{}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}]
)
def test_jpegs_are_read_as_pillow_reads_them(tmp_path, smooth, form):
    path = tmp_path / "image.jpg"
    path.write_bytes(save(Image.fromarray(smooth), "JPEG", **form))
    assert np.array_equal(read_image(path), np.asarray(Image.open(path)))


def test_a_harmless_oddity_of_a_header_is_no_damage(tmp_path, smooth):
    path, data = tmp_path / "odd.jpg", bytearray(save(Image.fromarray(smooth), "JPEG", quality=95))
    data[data.find(b"JFIF") + 5] = 84  # of the revision number
    path.write_bytes(bytes(data))
    assert np.abs(read_image(path).astype(int) - smooth).max() <= 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_grey_becomes_three_equal_channels(tmp_path, smooth, form):
    path = tmp_path / "grey"
    path.write_bytes(save(Image.fromarray(smooth[..., 0]), form))
    image = read_image(path)
    assert (image == image[..., :1]).all() and np.abs(image - smooth[..., :1].astype(int)).max() < 9


HUGE = """
import resource, sys
from pathlib import Path
from datasets.images import read_image
from util.errors import InputError
for name in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_image(Path(name))
    except InputError as error:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def with_size(image: np.ndarray, form: str, side: int) -> bytes:
    """A small file whose header promises side x side pixels."""
    data = bytearray(save(Image.fromarray(image), form))
    if form == "JPEG":
        place = data.find(b"\xff\xc0") + 5
        data[place : place + 4] = side.to_bytes(2, "big") * 2
    elif form == "PNG":
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif form == "GIF":
        data[6:10] = side.to_bytes(2, "little") * 2
    else:
        data[18:26] = side.to_bytes(4, "little") * 2
    return bytes(data)


def test_huge_images_are_refused_from_their_headers(tmp_path, smooth):
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        (tmp_path / form).write_bytes(with_size(smooth, form, 30000))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    command = [sys.executable, "-c", HUGE, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths), done
    for path, line in zip(paths, lines, strict=True):
        kib, _, message = line.partition(" ")
        assert int(kib) < 50_000 and path in message
        assert "30000 x 30000" in message or "too many pixels" in message


def test_the_limit_is_on_pixels(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("1", (2**14, MOST_PIXELS // 2**14 + 1)).save(path)
    with pytest.raises(InputError, match="wide.png is 16384 x 4097, expected at most"):
        image_size(path)


def damaged(rng: np.random.Generator, whole: bytes) -> bytes:
    """A run of up to 1,000 bytes of the image's coded part overwritten, lost or put in."""
    start = whole.rfind(b"\xff\xda") + 20
    place, length = int(rng.integers(start, len(whole) - 1200)), int(rng.integers(50, 1000))
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    cut, put = [(length, noise), (length, b""), (0, noise), (length, bytes(length))][
        rng.integers(4)
    ]
    return whole[:place] + put + whole[place + cut :]


def test_a_damaged_jpeg_that_still_decodes_is_named(tmp_path, shared):
    pytest.importorskip("simplejpeg")
    source = shared / "samples/StanfordExtra_v12/Images/n02092339-Weimaraner/n02092339_1013.jpg"
    whole, rng = source.read_bytes(), np.random.default_rng(0)
    path, accepted = tmp_path / "damaged.jpg", 0
    for _ in range(100):
        path.write_bytes(damaged(rng, whole))
        try:
            read_image(path)
            accepted += 1
        except InputError as error:
            assert str(path) in str(error)
    assert accepted <= 10


def test_with_checksums_no_changed_byte_is_accepted(small_set, capsys):
    command = ["--dataset", "stanford", "--data_dir", str(small_set)]
    assert check.main([*command, "--write_checksums"]) == 0
    assert "checksums of 4 images written" in capsys.readouterr().out
    assert build_dataset("stanford", small_set, "train").excluded == 0
    sums = small_set / "StanfordExtra_v12" / "SHA256SUMS"
    assert "  Images/breed/dog_3.png\n" in sums.read_text()
    path = photo_path(small_set, 0)
    image = cv2.imread(str(path))
    image[5, 5, 0] ^= 1
    cv2.imwrite(str(path), image)
    assert check.main(command) == 1
    out = capsys.readouterr().out
    assert "breed_dog_0" in out and "its checksum is not the recorded one" in out
    assert check.main([*command, "--write_checksums"]) == 1  # the sum that it should have stays
    assert check.main(command) == 1
