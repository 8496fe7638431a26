"""Stages 2 and 3: train the graph network that refines the mesh, then both networks.

python main_meshgraph.py --output_dir logs/stage2 --nEpochs 10 --local_feat --batch_size 32 \
    --freezecoarse --gpu_ids 0 --pretrained logs/stage1/checkpoint.pth.tar
python main_meshgraph.py --output_dir logs/stage3 --nEpochs 200 --lr 1e-5 --local_feat \
    --w_arap 10000 --w_dice 1000 --w_dice_refine 100 --w_pose_limit_prior 5000 \
    --resume logs/stage2/checkpoint.pth.tar --gpu_ids 0
"""

import torch

from engine import build, resume
from engine.checkpoint import TrainState
from engine.device import has_bf16
from engine.evaluate import evaluate
from engine.loop import fit
from engine.losses import Criterion
from engine.options import check_training, loss_weights, meshgraph_parser
from eval import evaluate_checkpoint
from report.preview import Preview
from util.errors import run_cli


def main(argv=None):
    args = meshgraph_parser().parse_args(argv)
    check_training(args, refined=True)
    if args.evaluate:
        return evaluate_checkpoint(args, "val")
    device = build.prepare(args)

    checkpoint = resume.find_checkpoint(args)
    config = build.resolve_network(args, checkpoint, refined=True)
    model = build.build_training_model(args, config, checkpoint, device)
    if args.freezecoarse:
        model.freeze_coarse()
    if args.bf16 and has_bf16(device):
        model.use_bf16()
    loaders = build.build_loaders(args, config, device)

    priors = build.build_priors(args, model.smal)
    criterion = Criterion(loss_weights(args), model.smal, *priors, args.renderer).to(device)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=args.lr, fused=True)
    stage = 2 if args.freezecoarse else 3
    state = TrainState(
        model,
        optimizer,
        config,
        stage,
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
