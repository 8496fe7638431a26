"""Stage 1: trains the coarse network, which regresses SMAL parameters and a camera from a picture.

python main.py --batch_size 32 --output_dir logs/stage1 --gpu_ids 0
"""

from util.options import stage1_parser
from util.train import train


def main(arguments=None):
    train(stage1_parser().parse_args(arguments), refined=False)


if __name__ == "__main__":
    main()
