"""Drop a photograph in a browser; see overlay and mesh; take the files away.

python app.py --checkpoint logs/stage3/checkpoint.pth.tar     (needs: pip install gradio)
"""

import os
import tempfile
from functools import cache
from pathlib import Path

from datasets.media import read_photograph
from demo import animals_of, body_folder, predict, tasks_of
from engine import build
from engine.checkpoint import load_checkpoint
from engine.detect import open_detector, whole
from engine.predict import Predictor
from engine.prediction_options import app_parser, check_prediction
from report.gallery import Gallery
from util.errors import InputError, run_cli

MAX_UPLOAD = "20mb"


def main(argv=None) -> None:
    args = app_parser().parse_args(argv)
    build_app(args).launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[str(args.output_dir.resolve())],
    )


def build_app(args):
    """The page: a photograph in, an overlay, a mesh to turn and files out.

    Args:
        args: of `app_parser`.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves the machine
    try:
        import gradio
    except ModuleNotFoundError:
        raise InputError("app.py needs the package gradio: pip install gradio") from None
    check_prediction(args)
    device = build.prepare(args)
    checkpoint = load_checkpoint(args.checkpoint)
    config = build.resolve_network(args, checkpoint, checkpoint.refined)
    detector = open_detector(args.detector, args.detector_weights, device)
    folder = body_folder(args)
    model = build.load_network(config, folder, checkpoint).to(device)

    @cache
    def predictor(fit_mask: bool) -> Predictor:
        """The networks; a fit needs priors, so it is made when it is asked for."""
        if not fit_mask:
            return Predictor(model)
        return Predictor(model, build.build_refiner(model.smal, folder, args.renderer, "mask"))

    build.make_output_dir(args.output_dir)

    def refuse(fault: InputError) -> None:
        raise fault

    def run(upload: str | None, fit_mask: bool):
        """Overlay, mesh and files of an uploaded photograph's first animal."""
        if upload is None:
            raise gradio.Error("Drop a photograph first.")
        try:
            photograph = read_photograph(upload, "photograph")
            animals = animals_of(photograph, None, detector) or [whole(photograph.image)]
            networks = predictor(fit_mask)
            tasks = tasks_of(photograph, animals, config.img_res, taken=set())
            out = Path(tempfile.mkdtemp(dir=args.output_dir))
            gallery = Gallery(out, model.smal.faces, args.renderer)
            predict(tasks, networks, gallery, on_fault=refuse)
        except InputError as error:
            raise gradio.Error(str(error).replace(str(upload), "the photograph")) from None
        name = tasks[0].name
        kind = "refined" if checkpoint.refined or fit_mask else "coarse"
        mesh = next(
            p for p in (out / f"{name}_{kind}.glb", out / f"{name}_coarse.glb") if p.exists()
        )
        files = sorted(p for p in out.iterdir() if p.suffix in {".glb", ".obj", ".ply", ".json"})
        return str(out / f"{name}_overlay.png"), str(mesh), [str(p) for p in files]

    fonts = ["system-ui", "sans-serif"]  # none from elsewhere
    theme = gradio.themes.Base(font=fonts, font_mono=["monospace"])
    with gradio.Blocks(title="Animal meshes", analytics_enabled=False) as app:
        app.theme = theme
        gradio.Markdown("## From one photograph of an animal, a 3D mesh")
        with gradio.Row():
            with gradio.Column():
                upload = gradio.Image(type="filepath", sources=["upload"], label="Photograph")
                fit_mask = gradio.Checkbox(label="Fit to the outline (slower)")
                button = gradio.Button("Find the mesh", variant="primary")
            overlay = gradio.Image(label="Overlay", interactive=False)
            mesh = gradio.Model3D(label="Mesh: drag to turn")
        files = gradio.File(label="Files", file_count="multiple", interactive=False)
        button.click(run, [upload, fit_mask], [overlay, mesh, files], api_name="predict")
    return app


if __name__ == "__main__":
    run_cli(main)
