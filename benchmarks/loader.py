"""How long a training item and an evaluation item take, against a plain twin in the same run.

    python -m benchmarks.loader                             # 64 synthetic images, under a minute
    python -m benchmarks.loader --data_dir data --img_res 224 --threads 2

The twin follows the published description word by word: the whole image and mask as floats, turned
about the crop's centre, surrounded by white, cut, resized, and normalised by one formula; in
training too it makes the planes that only scores read, as described, and ours does not. Items of
the two are read in turn and compared, and a third time from a cache (`--cache` of training); times
are the medians of CPU time on one thread.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from datasets import build_dataset
from datasets.annotations import read_joints
from datasets.labelled import LabelledImages
from datasets.transforms import Augmentation, draw_augmentation
from synthetic.writer import make_data
from util.camera import CROP
from util.files import write_json
from util.images import IMAGENET_MEAN, IMAGENET_STD
from util.memory import keep_freed_memory

NUM_IMAGES = 64  # synthetic ones, where no data is given


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", type=Path, help="data set (default: 64 synthetic images)")
    add("--img_res", type=int, nargs="+", default=[160, 224], help="sides of the input, pixels")
    add("--seconds", type=float, default=5.0, help="for each row")
    add("--threads", type=int, default=1, help="of OpenCV and PyTorch")
    add("--json", type=Path, default=Path("logs/benchmark_loader.json"), help="results")
    return parser.parse_args()


def plain_mask(counts: str, height: int, width: int) -> np.ndarray:
    """COCO's compressed run lengths, character by character: (height, width) float32, 0 or 1."""
    runs: list[int] = []
    place = 0
    while place < len(counts):
        number, shift, more = 0, 0, True
        while more:
            code = ord(counts[place]) - 48
            number |= (code & 31) << shift
            place, shift, more = place + 1, shift + 5, bool(code & 32)
            if not more and code & 16:
                number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    flat = np.zeros(height * width, np.float32)
    start = 0
    for i, run in enumerate(runs):
        flat[start : start + run] = i % 2
        start += run
    return flat.reshape(width, height).T


def plain_item(path: Path, entry: dict, img_res: int, change: Augmentation) -> dict:
    """The sample of an entry, as it is described.

    Args:
        path: of the photograph.
        entry: of the list of annotations.
        img_res: side of the network's input, pixels.
        change: of the crop; not mirrored.
    """
    image = np.array(Image.open(path).convert("RGB")).astype(np.float32) / 255
    height, width = image.shape[:2]
    mask = plain_mask(entry["seg"], height, width)
    inside = np.ones((height, width), np.float32)
    x, y, w, h = entry["img_bbox"]
    center, side = np.array([x + w / 2, y + h / 2]), 1.2 * max(w, h) * change.scale
    low = np.trunc(center - side / 2).astype(int)
    high = np.trunc(center + side / 2).astype(int)

    margin = int(max(-low.min(), (high - [width, height]).max(), 0)) + 1
    planes = []
    for plane, outside in ((image, 1.0), (mask, 0.0), (inside, 0.0)):
        fill = (outside,) * 3
        border = (margin,) * 4
        wide = cv2.copyMakeBorder(plane, *border, cv2.BORDER_CONSTANT, value=fill)
        if change.angle:
            turn = cv2.getRotationMatrix2D(tuple(map(float, center + margin)), -change.angle, 1)
            size = wide.shape[1::-1]
            wide = cv2.warpAffine(wide, turn, size, flags=cv2.INTER_LINEAR, borderValue=fill)
        (left, top), (right, bottom) = low + margin, high + margin
        planes.append(wide[top:bottom, left:right])
    image, mask, inside = planes

    crop = cv2.resize(image, (CROP, CROP))
    border_mask = (crop < 1).all(-1).astype(np.float32)
    if img_res != CROP:
        method = cv2.INTER_AREA if img_res < min(image.shape[:2]) else cv2.INTER_LINEAR
        crop = cv2.resize(image, (img_res, img_res), interpolation=method)
    if change.gain is not None:
        crop = np.clip(crop * np.array(change.gain, np.float32), 0, 1)
    cos, sin = np.cos(np.radians(change.angle)), np.sin(np.radians(change.angle))
    keypoints = np.zeros((20, 3), np.float32)
    for k, (px, py, visible) in enumerate(read_joints(entry)):
        if np.isfinite([px, py, visible]).all():
            dx, dy = px - center[0], py - center[1]
            dx, dy = dx * cos - dy * sin, dx * sin + dy * cos
            column, row = (int(d * CROP / side + CROP / 2) + 1 for d in (dx, dy))
            keypoints[k] = row, column, visible > 0
    values = {
        "image": ((crop - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1).copy(),
        "mask": cv2.resize(mask, (CROP, CROP)),
        "border_mask": border_mask,
        "inside": (cv2.resize(inside, (CROP, CROP)) > 0.5).astype(np.float32),
        "keypoints": keypoints,
    }
    return {name: torch.from_numpy(value) for name, value in values.items()}


def measure(dataset: LabelledImages, cached: LabelledImages, seconds: float) -> dict:
    """Medians of CPU seconds of an item, of its plain twin and of the item from a cache.

    And how far the first two are apart.
    """
    times: dict[str, list[float]] = {"ours": [], "plain": [], "cached": []}
    differences: dict[str, list[float]] = {}
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline or number < 10:
        epoch, item = divmod(number, len(dataset))
        dataset.set_epoch(epoch)
        start = time.process_time()
        sample = dataset[item]
        middle = time.process_time()
        index = dataset.indices[item]
        rng = np.random.default_rng((dataset.seed, epoch, index))
        change = draw_augmentation(rng, dataset.augment, flip=False)
        entry = dataset.entries[index]
        twin = plain_item(dataset.images / entry["img_path"], entry, dataset.img_res, change)
        end = time.process_time()
        times["ours"].append(middle - start)
        times["plain"].append(end - middle)
        cached.set_epoch(epoch)
        start = time.process_time()
        cached[item]
        times["cached"].append(time.process_time() - start)
        for name, value in ((k, v) for k, v in twin.items() if k in sample):
            apart = (value - sample[name]).abs().mean().item()
            differences.setdefault(name, []).append(apart)
        number += 1
    row: dict = {name: statistics.median(values) for name, values in times.items()}
    apart = {name: statistics.mean(values) for name, values in differences.items()}
    return row | {"items": number, "ratio": row["plain"] / row["ours"], "mean_difference": apart}


def main(args: argparse.Namespace) -> None:
    cv2.setNumThreads(args.threads if args.threads > 1 else 0)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the loader's workers do
    machine = platform.processor() or platform.machine()
    about = {"machine": machine, "torch": torch.__version__, "threads": args.threads}
    print(f"{machine}, torch {torch.__version__}, {args.threads} threads; CPU milliseconds an item")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_dir or Path(folder)
        if args.data_dir is None:
            make_data(data, num_images=NUM_IMAGES, seed=0, num_workers=1)
        print(f"{'':24}     ours    plain  ratio   cached  mean difference of the image")
        for img_res in args.img_res:
            for augment in (True, False):
                given: dict = {"img_res": img_res, "augment": augment, "scored": not augment}
                dataset = build_dataset("stanford", data, "train", **given)
                cached = build_dataset("stanford", data, "train", **given)
                cached.keep_pixels(Path(folder))
                kind = "training" if augment else "evaluation"
                row = {"item": kind, "img_res": img_res} | measure(dataset, cached, args.seconds)
                rows.append(row)
                print(
                    f"{kind + f' item, {img_res} px':24} {1e3 * row['ours']:8.2f} "
                    f"{1e3 * row['plain']:8.2f} {row['ratio']:6.2f} {1e3 * row['cached']:8.2f}  "
                    f"{row['mean_difference']['image']:.2g}",
                    flush=True,
                )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, about | {"rows": rows})
    print(f"Written to {args.json}")


if __name__ == "__main__":
    main(parse_args())
