"""Evaluates a checkpoint of any stage: PCK and IoU of the coarse and the refined mesh.

python eval.py --output_dir logs/test --resume logs/stage3/checkpoint.pth.tar --gpu_ids 0 \
    --local_feat --save_results
python eval.py --output_dir logs/test --resume logs/stage3/checkpoint.pth.tar --gpu_ids 0 \
    --local_feat --dataset animal_pose
"""

from engine import build
from engine.evaluate import evaluate
from engine.loaders import make_loader
from engine.options import eval_parser
from engine.resume import find_checkpoint
from report import tables
from report.results import Results
from util import distributed
from util.errors import InputError, run_cli


def main(argv=None):
    args = eval_parser().parse_args(argv)
    evaluate_checkpoint(args, args.split)


def evaluate_checkpoint(args, split: str) -> None:
    """Evaluates --resume on a split; writes report, page and, with --save_results, each image."""
    if args.resume is None:
        raise InputError("--resume is missing: give the checkpoint to evaluate")
    device = build.prepare(args)
    checkpoint = find_checkpoint(args)
    if checkpoint is None:
        raise InputError(f"--resume auto: {args.output_dir} holds no checkpoint to evaluate")
    config = build.resolve_network(args, checkpoint, checkpoint.refined)
    if args.refine == "outline" and not config.outline:
        raise InputError(f"--refine outline: {args.resume} sees no outline (--outline, stage 1)")
    model = build.load_network(config, build.param_dir(args), checkpoint).to(device)
    dataset, excluded = build.build_test_set(args, split, config.img_res, model.smal)
    build.make_output_dir(args.output_dir)
    if excluded:
        print(f"Unusable images left out: {excluded}; python -m datasets.check lists them.")

    results = Results(args.output_dir, model.smal.faces, args.renderer, args.save_results)
    refine = None
    if args.refine:
        folder = build.param_dir(args)
        refine = build.build_refiner(model.smal, folder, args.renderer, args.refine)
    loader = make_loader(dataset, args.batch_size, args.num_works, device)
    scores = evaluate(model, loader, args.renderer, results.add, refine)
    report = tables.summarize(scores) | {
        "dataset": args.dataset,
        "excluded": excluded,
        "checkpoint": str(checkpoint.path),
        "options": vars(args) | config.to_dict(),
    }
    if distributed.is_main():
        tables.write_report(args.output_dir, report, scores)
    facts = {"checkpoint": args.resume, "split": split}
    results.write_page(f"Evaluation on {args.dataset}", facts)
    print(f"{tables.format_report(report)}\nResults are in {args.output_dir}.")


if __name__ == "__main__":
    run_cli(main)
