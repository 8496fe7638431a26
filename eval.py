"""Evaluates a checkpoint of any stage: PCK and IoU of the coarse and the refined mesh.

python eval.py --output_dir logs/test --resume logs/stage3/checkpoint.pth.tar --gpu_ids 0 --local_feat --save_results
python eval.py --output_dir logs/test --resume logs/stage3/checkpoint.pth.tar --gpu_ids 0 --local_feat --dataset animal_pose
"""

import datasets
from util.build import build_model, check_renderer, start_from
from util.checkpoint import load_checkpoint
from util.options import (
    NETWORK_DEFAULTS,
    REFINER_DEFAULTS,
    check_output_dir,
    eval_parser,
    make_output_dir,
    one_sentence,
    resolve_network,
    select_device,
)
from util.results import evaluate_and_report


def main(arguments=None):
    args = eval_parser().parse_args(arguments)
    with one_sentence():
        if args.resume is None:
            raise ValueError("--resume is missing: give the checkpoint to evaluate")
        checkpoint = load_checkpoint(args.resume)
        resolve_network(args, checkpoint.options, NETWORK_DEFAULTS | REFINER_DEFAULTS, checkpoint.path)
        check_output_dir(args)
        device = select_device(args)
        check_renderer(args, device)
        model = build_model(args, refined=not checkpoint.coarse_only)
        start_from(model, checkpoint)
        model.to(device)
        dataset = datasets.build_dataset(args.dataset, args.data_dir, args.split, img_res=args.img_res, truth=True)
        if dataset.has_truth and len(dataset[0]["truth_verts"]) != model.smal.num_verts:
            raise ValueError(
                f"{dataset.root} holds pictures of another body than {args.param_dir or args.data_dir}; leave out --param_dir"
            )
        make_output_dir(args)
    if dataset.excluded:
        print(f"{dataset.excluded} unusable images are left out; python -m datasets.check lists them.")
    evaluate_and_report(model, dataset, args, device, args.resume, dataset.excluded)


if __name__ == "__main__":
    main()
