"""Stage 1: trains the coarse network, which regresses SMAL parameters and a camera from an image.

python main.py --batch_size 32 --output_dir logs/stage1 --gpu_ids 0
"""

import torch

from engine import build, resume
from engine.checkpoint import TrainState
from engine.device import has_bf16
from engine.evaluate import evaluate
from engine.loop import fit
from engine.losses import Criterion
from engine.options import check_training, loss_weights, stage1_parser
from eval import evaluate_checkpoint
from report.preview import Preview
from util.errors import run_cli


def main(argv=None):
    args = stage1_parser().parse_args(argv)
    check_training(args, refined=False)
    if args.evaluate:
        return evaluate_checkpoint(args, "val")
    device = build.prepare(args)

    checkpoint = resume.find_checkpoint(args)
    config = build.resolve_network(args, checkpoint, refined=False)
    model = build.build_training_model(args, config, checkpoint, device)
    if args.bf16 and has_bf16(device):
        model.use_bf16()
    loaders = build.build_loaders(args, config, device)

    priors = build.build_priors(args, model.smal)
    criterion = Criterion(loss_weights(args), model.smal, *priors, args.renderer).to(device)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=args.lr, fused=True)
    state = TrainState(
        model,
        optimizer,
        config,
        1,
        resume.training_options(args),
        args.grad_clip,
        build.build_schedule(args),
        build.build_average(args, model),
        args.grad_accum,
        args.cuda_graph,
    )

    with resume.open_run(state, checkpoint, args, loaders) as run:
        loaders.val.start_workers()  # before training's are at work
        preview = Preview(state.scored, loaders.val.dataset, args.renderer)
        fit(
            state,
            criterion,
            loaders.train,
            validate=lambda: evaluate(state.scored, loaders.val, args.renderer),
            run=run,
            epochs=args.nEpochs,
            on_validation=lambda state: preview.show(run, state.step),
        )


if __name__ == "__main__":
    run_cli(main)
