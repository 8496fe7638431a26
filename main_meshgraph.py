"""Stages 2 and 3: train the graph network that refines the mesh; stage 2 with the coarse network frozen, stage 3 both together.

python main_meshgraph.py --output_dir logs/stage2 --nEpochs 10 --local_feat --batch_size 32 --freezecoarse --gpu_ids 0 \
    --pretrained logs/stage1/checkpoint.pth.tar
python main_meshgraph.py --output_dir logs/stage3 --nEpochs 200 --lr 1e-5 --local_feat --w_arap 10000 --w_dice 1000 \
    --w_dice_refine 100 --w_pose_limit_prior 5000 --resume logs/stage2/checkpoint.pth.tar --gpu_ids 0
"""

from util.options import meshgraph_parser
from util.train import train


def main(arguments=None):
    train(meshgraph_parser().parse_args(arguments), refined=True)


if __name__ == "__main__":
    main()
