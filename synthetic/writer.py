"""Images of synthetic dogs with everything known about them, in the layouts of the real data sets.

    python -m synthetic --data_dir data/synthetic --num_images 5000 --seed 0

writes the body, its priors and its mesh hierarchy (`synthetic.body`), `StanfordExtra_v12/` with
num_images photographs and `animal_pose/` with a twelfth as many; docs/synthetic.md has the schema.
`--preset wide` draws views, poses, breeds and surroundings as in real photographs; `--backgrounds
DIR` gives it real ones.

Each image starts from random numbers of its own position in the list, so the number of processes
changes nothing, and the same options (and files in DIR) give the same bytes.
"""

import argparse
import glob
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from util.errors import InputError
from util.files import lock_folder, path_of, write_text
from util.memory import end_with_parent, keep_freed_memory

from .animal import Studio
from .body import write_body
from .photos import Photos
from .presets import PRESETS, WIDE_VERSION

SPLITS = {"train": 0.945, "val": 0.015, "test": 0.04}
ANIMAL_POSE_FRACTION = 12  # one image for Animal Pose to so many for StanfordExtra
UNLABELLED_IN_ANIMAL_POSE = (13, 17, 18, 19)
LEAST, MOST = 20, 10**7  # photographs in StanfordExtra's layout
BATCH = 16  # images that a process makes at a time
SETTINGS_FILE = "synthetic.json"
VERSION = 8  # of the images: raise it with every change of them

_studio: Studio | None = None  # of this process
_photos: Photos | None = None


def _start_worker(body_dir, backgrounds):
    global _studio, _photos
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _studio = Studio(body_dir)
    _photos = Photos(backgrounds) if backgrounds else None


def _start_process(*start):
    end_with_parent()
    keep_freed_memory()
    _start_worker(*start)


def _archive(arrays):
    """What `np.savez` writes; into a file, its many small pieces would take longer."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getbuffer()


def _make_batch(task):
    """Makes the images `indices` of one list and writes JPEGs and ground truth; returns entries."""
    folder, preset, seed, stream, indices = task
    preset = PRESETS[preset]
    rngs = [np.random.default_rng((seed, stream, i)) for i in indices]
    animals = _studio.place([preset.draw(rng, _studio) for rng in rngs], preset.rounds)
    entries = []
    for i, rng, animal in zip(indices, rngs, animals, strict=True):
        jpeg, entry, ground_truth = preset.photograph(rng, _studio, animal, _photos)
        if stream == 0:
            number = preset.breeds.index(animal.breed)
            breed = animal.breed.replace(" ", "_")
            name = f"n9{number:07d}-{breed}/n9{number:07d}_{i:05d}"
        else:
            name = f"made_up_{i:06d}"
            entry |= {"ear_tips_labelled": False, "has_segmentation": True}
            for k in UNLABELLED_IN_ANIMAL_POSE:
                entry["joints"][k] = [0.0, 0.0, 0.0]
        image_path, truth_path = folder / "Images" / f"{name}.jpg", folder / "Truth" / f"{name}.npz"
        for path in (image_path, truth_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        image_path.write_bytes(jpeg)
        truth_path.write_bytes(_archive(ground_truth))
        entries.append({"img_path": f"{name}.jpg", **entry})
    return entries


def write_images(
    data_dir: Path, num_images: int, seed: int, num_workers: int, preset="plain", backgrounds=None
) -> None:
    """Writes both data sets into a folder that holds the body already.

    Args:
        data_dir: the folder.
        num_images: photographs in StanfordExtra's layout.
        seed: of the random numbers.
        num_workers: processes; with 0 or 1 all happens in this one.
        preset: a key of PRESETS.
        backgrounds: folder of real photographs (`photos.Photos`), or None.
    """
    stanford, animal_pose = data_dir / "StanfordExtra_v12", data_dir / "animal_pose"
    few = max(1, num_images // ANIMAL_POSE_FRACTION)
    tasks = [
        (folder, preset, seed, stream, range(start, min(start + BATCH, count)))
        for stream, (folder, count) in enumerate(((stanford, num_images), (animal_pose, few)))
        for start in range(0, count, BATCH)
    ]
    lists: dict[Path, list] = {stanford: [], animal_pose: []}

    def collect(results):
        with tqdm(total=num_images + few, desc="making images", unit="image") as bar:
            for task, entries in zip(tasks, results, strict=True):
                lists[task[0]] += entries
                bar.update(len(entries))

    start = data_dir / "smal", backgrounds
    if num_workers < 2:
        threads = torch.get_num_threads(), cv2.getNumThreads()
        _start_worker(*start)
        collect(map(_make_batch, tasks))
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, _start_process, start) as pool:
            collect(pool.map(_make_batch, tasks))

    write_text(stanford / "StanfordExtra_v12.json", json.dumps(lists[stanford]))
    write_text(animal_pose / "animal_pose_data.json", json.dumps(lists[animal_pose]))
    order = np.random.default_rng((seed, 2)).permutation(num_images)
    ends = np.round(np.cumsum(list(SPLITS.values())) * num_images).astype(int)
    if num_images >= len(SPLITS):  # an image at least for each
        ends[1] = np.clip(ends[1], 2, num_images - 1)
        ends[0] = min(ends[0], ends[1] - 1)
    for split, part in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        np.save(stanford / f"{split}_stanford_StanfordExtra_v12.npy", np.sort(part))
    np.save(animal_pose / "test_animal_pose.npy", np.arange(few))


def make_data(
    data_dir,
    num_images: int = 1200,
    seed: int = 0,
    num_workers: int | None = None,
    preset: str = "plain",
    backgrounds=None,
) -> bool:
    """Makes the synthetic body and images in a folder, aside and then renamed.

    Args:
        data_dir: the folder; new, empty, or made with the same settings.
        num_images: photographs in StanfordExtra's layout, LEAST or more.
        seed: of the random numbers.
        num_workers: processes; one a core where None, this one alone where 0 or 1.
        preset: a key of PRESETS.
        backgrounds: folder of real photographs for the wide preset, or None.

    Returns:
        Whether anything was made: a folder made with the same settings is left as it is.

    Raises:
        InputError: too few images, a folder that holds anything else or cannot be made, or no
            photographs among the backgrounds.
    """
    if num_images < LEAST:
        found = f"{num_images} images: at least {LEAST} are needed to fill the three splits"
        raise InputError(found)
    if num_images > MOST:
        raise InputError(f"{num_images} images are more than {MOST}: make several folders")
    for name, value in (("seed", seed), ("num_works", num_workers or 0)):
        if value < 0:
            raise InputError(f"--{name} {value}: expected 0 or more")
    data_dir = Path(data_dir)
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"{data_dir} is a file; give a folder")
    settings: dict = {"num_images": num_images, "seed": seed, "version": VERSION}
    if preset != "plain":
        settings |= {"preset": preset, "version": WIDE_VERSION}
    if backgrounds:
        if not PRESETS[preset].uses_photos:
            raise InputError(f"the {preset} preset takes no backgrounds; choose the wide one")
        settings["backgrounds"] = Photos(backgrounds).digest()
    if data_dir.is_dir() and any(data_dir.iterdir()):
        state, found = "is not empty", data_dir / SETTINGS_FILE
        try:
            made = json.loads(found.read_text())
            state = f"was made with other settings ({json.dumps(made)})"
            if made == settings:
                return False
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            state = f"is not empty, and its {SETTINGS_FILE} cannot be read"
        wanted = json.dumps(settings)
        raise InputError(f"{data_dir} {state}; remove it or give another folder; wanted: {wanted}")
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{data_dir.name}-half-made-"
        for killed in data_dir.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_unless_held(killed)
        aside = Path(tempfile.mkdtemp(dir=data_dir.parent, prefix=prefix))
        lock = lock_folder(aside)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise InputError(f"{data_dir} cannot be made ({reason}); give another folder") from error
    try:
        write_body(aside, *PRESETS[preset].priors())
        write_images(aside, num_images, seed, num_workers, preset, backgrounds)
        (aside / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")
        aside.chmod(0o755)
        if data_dir.is_dir():
            data_dir.rmdir()
        aside.rename(data_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
    return True


def _remove_unless_held(aside):
    """Removes what a killed process left; not what another process is making."""
    try:
        lock = lock_folder(aside)
    except OSError:  # held, or no folder
        return
    if lock >= 0:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def get_parser() -> argparse.ArgumentParser:
    """The options of `python -m synthetic`."""
    parser = argparse.ArgumentParser(
        prog="python -m synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = "(default: %(default)s)"
    parser.add_argument(
        "--data_dir", type=path_of, default="data/synthetic", help=f"folder to make {shown}"
    )
    help_text = f"photographs in StanfordExtra's layout, {LEAST} or more {shown}"
    parser.add_argument("--num_images", type=int, default=5000, help=help_text)
    help_text = f"which world is drawn {shown}"
    parser.add_argument("--preset", choices=PRESETS, default="plain", help=help_text)
    parser.add_argument(
        "--backgrounds",
        type=path_of,
        metavar="DIR",
        help="real photographs for surroundings and fur (wide)",
    )
    parser.add_argument("--seed", type=int, default=0, help=f"random seed {shown}")
    parser.add_argument("--num_works", type=int, help="processes (default: one a core)")
    return parser


def main(argv=None) -> None:
    """Makes what the options ask for and says where it is."""
    args = get_parser().parse_args(argv)
    options = args.num_images, args.seed, args.num_works, args.preset, args.backgrounds
    if make_data(args.data_dir, *options):
        print(f"{args.num_images} images of synthetic dogs are in {args.data_dir}")
    else:
        print(f"{args.data_dir} holds these {args.num_images} images already; nothing was made")
