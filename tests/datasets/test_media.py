"""People's own photographs and videos as they are seen."""

import importlib.util
import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.images import MOST_PIXELS, read_image
from datasets.media import RESULTS, find_media, media_names, read_media, read_photograph, read_video
from util.errors import InputError

LEFT, RIGHT = (200, 40, 40), (40, 60, 200)


@pytest.fixture
def picture() -> np.ndarray:
    """(48, 64, 3) uint8: red on the left, blue on the right."""
    image = np.empty((48, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = LEFT, RIGHT
    return image


def near(colour, expected) -> bool:
    return np.abs(np.asarray(colour, int) - expected).max() <= 12


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_every_kind_is_read(tmp_path, picture, ending):
    path = tmp_path / f"dog.{ending}"
    Image.fromarray(picture).save(path)
    photo = read_photograph(path)
    assert photo.name == "dog" and photo.image.shape == (48, 64, 3)
    assert photo.image.dtype == np.uint8 and photo.mask is None and photo.box is None
    assert near(photo.image[24, 5], LEFT) and near(photo.image[24, 60], RIGHT)


@pytest.mark.parametrize("tag, left", [(1, (24, 5)), (3, (24, 60)), (6, (5, 24)), (8, (60, 24))])
def test_the_orientation_tag_is_followed(tmp_path, picture, tag, left):
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(picture).save(tmp_path / "dog.jpg", exif=exif)
    image = read_photograph(tmp_path / "dog.jpg").image
    assert image.shape == ((48, 64, 3) if tag in (1, 3) else (64, 48, 3))
    assert near(image[left], LEFT)


@pytest.mark.parametrize("read", [read_image, read_photograph])
def test_a_damaged_jpeg_that_still_decodes_is_named(tmp_path, read):
    pytest.importorskip("simplejpeg")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = tmp_path / "dog.jpg"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2  # of the coded pixels
    assert read(path) is not None
    for wrong in (b"\xff\x00" * 8, b"\xff\xd3"):
        path.write_bytes(whole[:middle] + wrong + whole[middle + len(wrong) :])
        with Image.open(path) as image:
            image.load()  # it still decodes
        with pytest.raises(InputError, match=r"^[^ ]*dog\.jpg is damaged \([^/]*\)$"):
            read(path)


def test_transparency_lies_over_white(tmp_path, picture):
    alpha = np.zeros((48, 64, 1), np.uint8)
    alpha[:, 32:], alpha[:10, 32:] = 255, 128
    Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "dog.png")
    image = read_photograph(tmp_path / "dog.png").image
    assert (image[:, :32] == 255).all() and (image[20:, 32:] == RIGHT).all()
    assert near(image[5, 60], [(c + 255) / 2 for c in RIGHT])
    palette = Image.fromarray(picture).quantize(4)
    index = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=index)
    image = read_photograph(tmp_path / "palette.png").image
    assert (image[:, :32] == 255).all() and near(image[5, 60], RIGHT)


def test_grey_cmyk_and_sixteen_bits_become_colours(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    assert (read_photograph(tmp_path / "grey.png").image == picture[..., :1]).all()
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert near(read_photograph(tmp_path / "cmyk.jpg").image[24, 5], LEFT)
    for name, pixels in (("deep", picture[..., ::-1]), ("deep_grey", picture[..., 0])):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels.astype(np.uint16) * 257)
    assert (read_photograph(tmp_path / "deep.png").image == picture).all()
    assert (read_photograph(tmp_path / "deep_grey.png").image == picture[..., :1]).all()


def test_the_first_frame_of_an_animation(tmp_path, picture):
    frames = [Image.fromarray(x) for x in (picture, 255 - picture)]
    frames[0].save(tmp_path / "dog.gif", save_all=True, append_images=frames[1:])
    assert near(read_photograph(tmp_path / "dog.gif").image[24, 5], LEFT)


def test_heic_is_read_or_the_package_named(tmp_path, picture):
    path = tmp_path / "dog.HEIC"
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.from_pillow(Image.fromarray(picture)).save(path)
        assert near(read_photograph(path).image[24, 5], LEFT)
    else:
        path.write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(InputError, match="pip install pillow-heif"):
            read_photograph(path)


def test_a_mask_beside_the_photograph_gives_the_box(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "dog.jpg")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 7:21] = 255
    Image.fromarray(mask).save(tmp_path / "dog_mask.png")
    photo = read_photograph(tmp_path / "dog.jpg")
    assert photo.box == (7, 10, 14, 20) and np.array_equal(photo.mask, mask // 255)
    assert [p.name for p in find_media([tmp_path])] == ["dog.jpg"]
    (tmp_path / "phone").mkdir()
    Image.fromarray(picture).save(tmp_path / "phone" / "IMG_1.JPG")
    for name in ("IMG_1", "cat", "dog"):  # of a photograph, of HEIC, of nothing
        Image.fromarray(mask).save(tmp_path / "phone" / f"{name}_mask.png")
    (tmp_path / "phone" / "cat.heic").touch()
    found = [p.name for p in find_media([tmp_path / "phone"])]
    assert found == ["IMG_1.JPG", "cat.heic", "dog_mask.png"]
    Image.fromarray(mask[:40]).save(tmp_path / "dog_mask.png")
    with pytest.raises(InputError, match=r"dog_mask\.png is 64 x 40, expected .* 64 x 48"):
        read_photograph(tmp_path / "dog.jpg")
    Image.fromarray(0 * mask).save(tmp_path / "dog_mask.png")
    with pytest.raises(InputError, match=r"dog_mask\.png is empty"):
        read_photograph(tmp_path / "dog.jpg")


def test_folders_are_read_in_order_and_names_differ(tmp_path, picture):
    for name in ("b/dog.jpg", "a/dog.png", "a/deep/er.webp", "z.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no photograph")
    paths = find_media([tmp_path, tmp_path / "z.JPG"])
    names = ["a/deep/er.webp", "a/dog.png", "b/dog.jpg", "z.JPG", "z.JPG"]
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == names
    assert [p.name for p in read_media(paths)] == ["er", "dog_1", "dog_2", "z_3", "z_4"]


def test_hidden_files_results_and_masks_given_by_name_are_left_out(tmp_path, picture):
    for name in ("dog.jpg", "._dog.jpg", "out/dog_overlay.png", ".hidden/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    Image.fromarray(picture[..., 0]).save(tmp_path / "dog_mask.png")
    dog = tmp_path / "dog.jpg"
    assert find_media([tmp_path], skip=tmp_path / "x" / ".." / "out") == [dog]
    faults = []
    (tmp_path / "notes.txt").write_text("no photograph")
    given = [dog, tmp_path / "dog_mask.png", tmp_path / "notes.txt", tmp_path / "gone.jpg"]
    assert find_media(given, faults.append) == [dog]  # as a shell's * gives them
    (tmp_path / "notes").mkdir()
    given += [tmp_path / "notes", tmp_path / "out"]
    assert find_media(given, faults.append, skip=tmp_path / "out") == [dog]
    assert "notes holds no photograph" in str(faults[-1]) and len(faults) == 5
    with pytest.raises(InputError, match="where results go"):
        find_media([tmp_path / "out"], skip=tmp_path / "out")
    assert ["notes.txt" in str(faults[0]), "gone.jpg is missing" in str(faults[1])] == [True] * 2


def test_long_names_leave_room_for_endings(tmp_path, picture):
    for ending in ("jpg", "png"):
        Image.fromarray(picture).save(tmp_path / f"{'犬' * 80}.{ending}")
    names = media_names(find_media([tmp_path]))
    assert len(set(names)) == 2 and max(len(name.encode()) for name in names) < 210


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_cut_exif_is_named(tmp_path, picture):
    """Wherever it is cut, the photograph is read or named."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf")
    size = int.from_bytes(data[start - 4 : start], "big")
    named = 0
    for length in range(size):
        chunk = data[start : start + 4 + length]
        cut = data[: start - 4] + length.to_bytes(4, "big") + chunk
        cut += zlib.crc32(chunk).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(cut + data[start + 8 + size :])
        try:
            read_photograph(tmp_path / "a.png")
        except InputError as error:
            named += 1
            assert "a.png is damaged" in str(error)
    assert named > 0


def test_what_is_no_photograph_is_named(tmp_path, picture):
    with pytest.raises(InputError, match="nowhere is missing"):
        find_media([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no photograph or video"):
        find_media([tmp_path])
    (tmp_path / "notes.txt").write_text("no photograph")
    with pytest.raises(InputError, match="neither photograph nor video"):
        find_media([tmp_path / "notes.txt"])
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    Image.new("1", (2**14, MOST_PIXELS // 2**14 + 1)).save(tmp_path / "d.png")
    paths, faults = find_media([tmp_path]), []
    assert [p.name for p in read_media(paths, on_fault=faults.append)] == ["a"]
    assert len(faults) == 3
    for name, fault in zip(("b.jpg", "c.mp4", "d.png"), faults, strict=True):
        assert name in str(fault)
    with pytest.raises(InputError, match=r"b\.jpg"):
        list(read_media(paths))


def test_a_video_is_read_frame_by_frame(tmp_path, picture):
    path = tmp_path / "run.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV writes no video")
    for shift in range(10):
        video.write(np.roll(picture, 3 * shift, 1)[..., ::-1])
    video.release()
    frames = list(read_video(path, every=4))
    assert [f.name for f in frames] == ["run_000000", "run_000004", "run_000008"]
    assert [f.frame for f in frames] == [0, 4, 8]
    assert near(frames[0].image[24, 10], LEFT) and near(frames[1].image[24, 3], RIGHT)
    assert [p.name for p in read_media([path], every=9)] == ["run_000000", "run_000009"]


def test_a_file_where_results_go_is_refused_before_they_replace_it(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "dog_strip.png")
    with pytest.raises(InputError, match="dog_strip.png lies in .*where results go"):
        find_media([tmp_path / "dog_strip.png"], print, skip=tmp_path)
    assert find_media([tmp_path / "dog_strip.png"], skip=tmp_path / "results")


def test_the_longest_name_is_read_and_a_closed_folder_is_named(tmp_path, picture, monkeypatch):
    path = tmp_path / ("a" * 251 + ".png")  # its mask's name would be too long
    Image.fromarray(picture).save(path)
    assert read_photograph(path).mask is None
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    faults = []
    assert find_media([tmp_path], faults.append) == [path]
    assert [str(f) for f in faults] == [f"{tmp_path / 'closed'} cannot be read: Permission denied"]


def test_fractions_are_refused(tmp_path, picture):
    Image.fromarray(picture[..., 0].astype(np.float32) / 255).save(tmp_path / "a.tif")
    for read in (read_photograph, read_image):
        with pytest.raises(InputError, match="^[^ ]*a.tif holds numbers with fractions"):
            read(tmp_path / "a.tif")


def test_results_of_an_earlier_run_are_no_photographs(tmp_path, picture):
    (tmp_path / "out" / "page").mkdir(parents=True)
    (tmp_path / "album").mkdir()
    for folder in (tmp_path, tmp_path / "out", tmp_path / "album"):
        Image.fromarray(picture).save(folder / "dog.png")
    assert len(find_media([tmp_path])) == 3
    (tmp_path / RESULTS).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / RESULTS).write_text("")
    found = find_media([tmp_path])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["album/dog.png", "dog.png"]
    assert len(find_media([tmp_path / "out"])) == 1, "a folder that is named is read"
