"""Meshes of the animals in photographs, folders of them, or videos.

python demo.py photographs/ --output_dir logs/meshes
python demo.py dog.jpg --checkpoint logs/stage3/checkpoint.pth.tar --detector none --turntable
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.media import (
    MASK_ENDING,
    VIDEO_SUFFIXES,
    Photograph,
    files_inside,
    find_media,
    media_names,
    read_media,
    read_video,
)
from engine import build
from engine.checkpoint import load_checkpoint
from engine.detect import Animal, Detector, open_detector, whole
from engine.predict import Predictor, Task, sample_of
from engine.prediction_options import PRETRAINED, check_prediction, demo_parser
from engine.run_folder import write_command
from engine.video import follow, packed, smooth_prediction, unpacked, without_features
from report.gallery import Gallery
from smal_model.hierarchy import HIERARCHY_FILE
from synthetic.body import write_body
from synthetic.presets import PRESETS
from util.errors import InputError, run_cli

LARGEST_BOX = 100  # of --bbox, in sides of the photograph


def main(argv=None) -> int:
    args = demo_parser().parse_args(argv)
    failed: list[str] = []

    def on_fault(fault: InputError) -> None:
        failed.append(str(fault))

    check_prediction(args)
    paths = find_media(args.input, on_fault, args.output_dir)
    device = build.prepare(args)
    checkpoint = load_checkpoint(args.checkpoint)
    config = build.resolve_network(args, checkpoint, checkpoint.refined)
    detector = None
    if args.bbox is None:
        detector = open_detector(args.detector, args.detector_weights, device)
    folder = body_folder(args)
    try:
        model = build.load_network(config, folder, checkpoint).to(device)
    except InputError as error:
        if folder != args.output_dir / "body":
            raise
        reason = str(error).removesuffix(".")
        raise InputError(f"{reason}, or remove {folder}: it is made anew") from None
    refine = None
    if args.refine:
        refine = build.build_refiner(model.smal, folder, args.renderer, "mask")
    predictor = Predictor(model, refine)
    build.make_output_dir(args.output_dir)
    write_command(args.output_dir / build.RECORDS[0], vars(args), str(device))
    gallery = Gallery(args.output_dir, model.smal.faces, args.renderer, args.turntable)

    for path in other_files(args.input, paths, args.output_dir):
        print(f"left out: {path} is neither photograph nor video", file=sys.stderr)
    unmasked: list[str] = []
    named = list(zip(media_names(paths), paths, strict=True))
    videos = [(n, p) for n, p in named if p.suffix.lower() in VIDEO_SUFFIXES]
    photographs = [(n, p) for n, p in named if p.suffix.lower() not in VIDEO_SUFFIXES]
    taken = {name for name, _ in named}
    batch: list[Task] = []
    reader = read_media(
        [path for _, path in photographs],
        on_fault=on_fault,
        names=[name for name, _ in photographs],
    )
    try:
        for photograph in tqdm(reader, desc="photographs", total=len(photographs)):
            try:
                animals = animals_of(photograph, args.bbox, detector)
            except InputError as error:
                failed.append(str(error))
                continue
            animals = animals or [whole(photograph.image)]
            tasks = tasks_of(photograph, animals, config.img_res, taken)
            batch += tasks
            while len(batch) >= args.batch_size:
                unmasked += predict(batch[: args.batch_size], predictor, gallery, on_fault)
                batch = batch[args.batch_size :]
        if batch:
            unmasked += predict(batch, predictor, gallery, on_fault)
        for name, path in tqdm(videos, desc="videos"):
            try:
                masked = predict_video(name, path, args, predictor, gallery, detector)
                unmasked += [] if masked else [name]
            except InputError as error:
                failed.append(str(error))
    finally:  # what is done can be seen, whatever stopped the rest
        try:
            gallery.write_page("Meshes from photographs", {"checkpoint": args.checkpoint})
        except InputError as error:
            failed.append(str(error))
    print(f"Results are in {args.output_dir}: open index.html ({len(gallery.images)} in it).")
    if args.refine and unmasked:
        reason = "no mask is known" + " and the network sees no outline" * config.outline
        print(f"not refined, since {reason}: {', '.join(unmasked)}", file=sys.stderr)
    for fault in failed:
        print(f"not done: {fault}", file=sys.stderr)
    return 1 if failed else 0


def other_files(inputs: list[Path], paths: list[Path], skip: Path) -> list[Path]:
    """Files in the folders among `inputs` that are neither read nor the mask of what is."""
    read = {*paths, *(path.with_name(path.stem + MASK_ENDING) for path in paths)}
    folders = [f for f in inputs if f.is_dir() and f.resolve() != skip.resolve()]
    inside = [p for folder in folders for p in files_inside(folder, skip)]
    return [p for p in inside if p not in read]


def animals_of(photograph: Photograph, bbox, detector: Detector | None) -> list[Animal]:
    """The animals of a photograph: that of --bbox, of its mask, or those detected, maybe none."""
    if bbox is not None:
        x, y, w, h = bbox
        height, width = photograph.image.shape[:2]
        size = f"{width} x {height} pixels"
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise InputError(f"{photograph.path} has {size}: the box of --bbox lies outside it")
        if max(w, h) > LARGEST_BOX * max(width, height):
            raise InputError(f"{photograph.path} has {size}: the box of --bbox is far larger")
        columns, rows = (slice(max(int(a), 0), int(np.ceil(a + b))) for a, b in ((x, w), (y, h)))
        mask = photograph.mask
        inside = mask is not None and mask[rows, columns].any()
        return [Animal(np.array(bbox), mask if inside else None)]
    if photograph.mask is not None:
        return [Animal(np.array(photograph.box, float), photograph.mask)]
    return detector(photograph.image) if detector else []


def tasks_of(
    photograph: Photograph, animals: list[Animal], img_res: int, taken: set[str]
) -> list[Task]:
    """A task for each animal, with its crop, under a name that is not in `taken` and is then."""
    names = [photograph.name]
    if len(animals) > 1:
        names = [f"{photograph.name}_{number}" for number in range(1, len(animals) + 1)]
        while not taken.isdisjoint(names):  # another photograph is called dog_1
            names = [name + "_" for name in names]
        taken.update(names)
    tasks = []
    for name, animal in zip(names, animals, strict=True):
        sample = sample_of(photograph.image, animal, img_res, name)
        tasks.append(Task(name, photograph.path, photograph.image, sample))
    return tasks


def predict(tasks: list[Task], predictor: Predictor, gallery: Gallery, on_fault) -> list[str]:
    """Predicts a batch and writes its results; returns the names of those without a mask."""
    batch, out = predictor([task.sample for task in tasks])
    for i, task in enumerate(tasks):
        try:
            gallery.add(task, out, i)
        except InputError as fault:
            on_fault(fault)
    masked = batch["has_mask"].tolist()
    return [task.name for task, known in zip(tasks, masked, strict=True) if not known]


def predict_video(
    name: str, path: Path, args, predictor: Predictor, gallery: Gallery, detector
) -> bool:
    """Follows one animal through a video: boxes first, then parameters, then images.

    Returns:
        Whether some frame has a mask.
    """

    def frames() -> Iterator[np.ndarray]:
        return (photograph.image for photograph in read_video(path))

    found = [
        [packed(animal) if args.refine else replace(animal, mask=None) for animal in animals]
        for animals in (animals_of(frame, args.bbox, detector) for frame in read_video(path))
    ]
    if not any(found):
        found = [[whole(image)] for image in frames()]
    animals = follow(found)
    parts: list = []
    crops: list = []
    samples: list[dict] = []
    masked = False
    for image, animal in zip(frames(), animals, strict=True):
        samples.append(sample_of(image, unpacked(animal), predictor.img_res, name))
        if len(samples) == args.batch_size or len(crops) + len(samples) == len(animals):
            batch, prediction = predictor(samples)
            masked = masked or bool(batch["has_mask"].any())
            parts.append(without_features(prediction))
            for sample in samples:
                center, side = sample["center"].tolist(), 200 * float(sample["scale"])
                crops.append((tuple(center), side))
            samples = []
    out = smooth_prediction(parts, predictor.model.smal)
    video = cv2.VideoCapture(str(path))
    rate, promised = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    if len(animals) < 0.95 * promised - 1:  # the file's count is often a guess
        print(f"{path} ends after {len(animals)} of {promised} frames", file=sys.stderr)
    gallery.add_video(name, frames(), out, crops, rate)
    return masked


def body_folder(args) -> Path:
    """The folder of the body: --param_dir or --data_dir, else the embedded one, made here.

    The network that comes with the program is of the embedded body, whatever these hold.
    """
    folder = build.param_dir(args)
    own_network = args.checkpoint.resolve() == PRETRAINED.resolve()
    if own_network and args.param_dir:
        own = "the network that comes with the program has its own body"
        raise InputError(f"--param_dir {args.param_dir}: {own}; leave it out, or give --checkpoint")
    if not own_network and (folder / "smal").is_dir():
        return folder
    own = args.output_dir / "body"
    if not (own / HIERARCHY_FILE).is_file():  # the last that is written
        if not own_network:
            print(f"{folder} holds no body: the embedded one is made in {own}.")
        write_body(own, *PRESETS["wide"].priors())
    return own


if __name__ == "__main__":
    run_cli(main)
