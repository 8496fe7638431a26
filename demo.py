"""Meshes of the animals in photographs, folders of them, or videos.

python demo.py photographs/ --checkpoint logs/stage3/checkpoint.pth.tar --output_dir logs/meshes
python demo.py dog.jpg --checkpoint logs/stage3/checkpoint.pth.tar --detector none --turntable
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.media import (
    MASK_ENDING,
    VIDEO_SUFFIXES,
    Photograph,
    find_media,
    read_media,
    read_video,
)
from engine import build
from engine.checkpoint import load_checkpoint
from engine.detect import Animal, Detector, find_animals, open_detector
from engine.predict import Predictor, Task, sample_of
from engine.prediction_options import demo_parser
from engine.video import follow, smooth_prediction
from report.gallery import Gallery
from synthetic.body import write_body
from util.errors import InputError, run_cli


def main(argv=None) -> int:
    args = demo_parser().parse_args(argv)
    device = build.prepare(args)
    checkpoint = load_checkpoint(args.checkpoint)
    config = build.resolve_network(args, checkpoint, checkpoint.refined)
    folder = body_folder(args)
    model = build.load_network(config, folder, checkpoint).to(device)
    refine = None
    if args.refine:
        refine = build.build_refiner(model.smal, folder, args.renderer, "mask")
    predictor = Predictor(model, refine)
    detector = None
    if args.bbox is None:
        detector = open_detector(args.detector, args.detector_weights, device)
    build.make_output_dir(args.output_dir)
    gallery = Gallery(args.output_dir, model.smal.faces, args.renderer, args.turntable)

    paths = find_media(args.input)
    for path in other_files(args.input, paths):
        print(f"left out: {path} is neither photograph nor video", file=sys.stderr)
    failed: list[str] = []
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    batch: list[Task] = []
    photographs = [path for path in paths if path not in videos]
    reader = read_media(photographs, on_fault=lambda fault: failed.append(str(fault)))
    for photograph in tqdm(reader, desc="photographs", total=len(photographs)):
        batch += tasks_of(photograph, args.bbox, detector, config.img_res)
        while len(batch) >= args.batch_size:
            predict(batch[: args.batch_size], predictor, gallery)
            batch = batch[args.batch_size :]
    if batch:
        predict(batch, predictor, gallery)
    for path in tqdm(videos, desc="videos"):
        try:
            predict_video(path, args, predictor, gallery, detector)
        except InputError as error:
            failed.append(str(error))

    gallery.write_page("Meshes from photographs", {"checkpoint": args.checkpoint})
    print(f"{len(gallery.images)} results are in {args.output_dir}: open index.html.")
    for fault in failed:
        print(f"not done: {fault}", file=sys.stderr)
    return 1 if failed else 0


def other_files(inputs: list[Path], paths: list[Path]) -> list[Path]:
    """Files in the folders among `inputs` that are neither read nor the mask of what is."""
    read = {*paths, *(path.with_name(path.stem + MASK_ENDING) for path in paths)}
    inside = [p for folder in inputs if folder.is_dir() for p in sorted(folder.rglob("*"))]
    return [p for p in inside if p.is_file() and p not in read and not p.name.startswith(".")]


def tasks_of(photograph: Photograph, bbox, detector: Detector | None, img_res: int) -> list[Task]:
    """The animals of a photograph, each with its crop: --bbox, its mask, or what is detected."""
    image, mask = photograph.image, photograph.mask
    if bbox is not None:
        animals = [Animal(np.array(bbox), mask)]
    elif mask is not None:
        animals = [Animal(np.array(photograph.box, float), mask)]
    else:
        animals = find_animals(image, detector)
    tasks = []
    for number, animal in enumerate(animals, 1):
        name = photograph.name + (f"_{number}" if len(animals) > 1 else "")
        sample = sample_of(image, animal, img_res, name)
        tasks.append(Task(name, photograph.path, image, sample))
    return tasks


def predict(tasks: list[Task], predictor: Predictor, gallery: Gallery) -> None:
    """Predicts a batch and writes its results."""
    _, out = predictor([task.sample for task in tasks])
    for i, task in enumerate(tasks):
        gallery.add(task, out, i)


def predict_video(path: Path, args, predictor: Predictor, gallery: Gallery, detector) -> None:
    """Follows one animal through a video: boxes first, then parameters, then images."""

    def frames() -> Iterator[np.ndarray]:
        return (photograph.image for photograph in read_video(path))

    box = None if args.bbox is None else [Animal(np.array(args.bbox))]
    animals = follow([box or find_animals(image, detector) for image in frames()])
    parts: list = []
    crops: list = []
    samples: list[dict] = []
    for image, animal in zip(frames(), animals, strict=True):
        samples.append(sample_of(image, animal, predictor.img_res, path.stem))
        if len(samples) == args.batch_size or len(crops) + len(samples) == len(animals):
            parts.append(predictor(samples)[1])
            for sample in samples:
                center, side = sample["center"].tolist(), 200 * float(sample["scale"])
                crops.append((tuple(center), side))
            samples = []
    out = smooth_prediction(parts, predictor.model.smal)
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    gallery.add_video(path.stem, frames(), out, crops, rate)


def body_folder(args) -> Path:
    """The folder of the body: --param_dir or --data_dir, else the embedded one, made here."""
    folder = build.param_dir(args)
    if (folder / "smal").is_dir():
        return folder
    own = args.output_dir / "body"
    if not (own / "smal").is_dir():
        print(f"{folder} holds no body: the embedded one is made in {own}.")
        write_body(own)
    return own


if __name__ == "__main__":
    run_cli(main)
