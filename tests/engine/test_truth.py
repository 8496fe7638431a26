"""Training from ground truth, heat maps and frozen maps: from command to checkpoint."""

import pytest
import torch

import eval as eval_script
import main
import main_meshgraph
from engine import build
from engine.losses import Criterion, LossWeights
from engine.options import meshgraph_parser
from engine.resume import find_checkpoint
from model import CoarseModel
from smal_model import SMAL, priors
from tests.commands import SMALL, fails
from tests.engine.few import read_content

TRUTH = "--w_maps 30 --w_verts 60 --w_pose 10 --w_betas 0.5 --w_camera 20 --w_dice 10".split()
WITH = [
    "--keypoint_maps",
    "--outline",
    "--w_outline",
    "10",
    "--augment",
    "strong",
    "--flip",
    "--freeze_backbone",
    "2",
    *TRUTH,
]


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth") / "stage1"
    run = ["--data_dir", str(data), "--batch_size", "8", "--output_dir", str(folder)]
    main.main([*run, *SMALL, *WITH, "--nEpochs", "2"])
    return run, folder


def test_terms_are_logged_and_resuming_is_exact(stage1, data, tmp_path):
    run, folder = stage1
    line = (folder / "log.txt").read_text().splitlines()[-1]
    moved = ("kpts", "verts", "pose", "betas", "camera", "dice")
    for term in ("maps", "outline", *moved, *(f"before_{name}" for name in moved)):
        assert f"  {term} " in line
    content = read_content(folder / "checkpoint.pth.tar")
    assert content["options"]["keypoint_maps"] is True
    half = [*run[:-1], str(tmp_path)]
    main.main([*half, *SMALL, *WITH, "--nEpochs", "1"])
    main.main([*half, *SMALL[6:], *WITH[2:], "--nEpochs", "2", "--resume", "auto"])
    again = read_content(tmp_path / "checkpoint.pth.tar")
    for name, value in content["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name]), name


def test_the_answer_before_the_steps_has_losses_of_its_own(synthetic_body):
    smal, folder = SMAL(synthetic_body / "smal"), synthetic_body
    model = CoarseModel(smal, "resnet18", img_res=64, keypoint_maps=True).train()
    prior = priors.shape_prior("smal", smal, folder), priors.pose_prior("smal", folder)
    out = model(torch.randn(2, 3, 64, 64))
    batch = {"keypoints": torch.cat([224 * torch.rand(2, 20, 2), torch.ones(2, 20, 1)], -1)}
    batch |= {"has_keypoints": torch.tensor([True, True])}
    criterion = Criterion(LossWeights(betas_prior=0, pose_prior=0), smal, *prior)
    terms = criterion(out, batch)
    assert terms.keys() == {"kpts", "before_kpts"}
    assert terms["kpts"].item() != pytest.approx(terms["before_kpts"].item(), rel=1e-3)
    out.coarse = out.before.estimate
    same = criterion(out, batch)
    assert same["kpts"].item() == terms["before_kpts"].item()


def test_the_frozen_maps_are_as_they_were(stage1, data, tmp_path):
    run, folder = stage1
    trained = read_content(folder / "checkpoint.pth.tar")["state_dict"]
    torch.manual_seed(0)
    main.main([*run[:-1], str(tmp_path), *SMALL, *WITH, "--nEpochs", "1"])
    other = read_content(tmp_path / "checkpoint.pth.tar")["state_dict"]
    names = [k for k in trained if k.endswith("weight")]
    frozen = [k for k in names if ".resnet.layer1." in k or ".resnet.layer2." in k]
    assert frozen and all(torch.equal(trained[k], other[k]) for k in frozen)
    learning = [k for k in names if ".resnet.layer3." in k]
    assert learning and not any(torch.equal(trained[k], other[k]) for k in learning)


def test_maps_that_would_only_suffer_are_named(stage1, tmp_path, capsys):
    """Where the network around them learns without --w_maps."""
    run, folder = stage1
    run = [*run[:-1], str(tmp_path), *SMALL[6:], "--nEpochs", "1", "--num_channels", "16"]
    run += ["--local_feat", "--pretrained", str(folder / "checkpoint.pth.tar")]
    for more, said in (([], True), (["--w_maps", "1"], False), (["--freezecoarse"], False)):
        args = meshgraph_parser().parse_args([*run, *more])
        checkpoint = find_checkpoint(args)
        config = build.resolve_network(args, checkpoint, refined=True)
        build.build_training_model(args, config, checkpoint, torch.device("cpu"))
        assert ("--w_maps 0: " in capsys.readouterr().out) == said


def test_the_refiner_learns_from_ground_truth_too(stage1, tmp_path):
    run, folder = stage1
    run = [*run[:-1], str(tmp_path), *SMALL[6:]]
    start = ["--pretrained", str(folder / "checkpoint.pth.tar"), "--num_channels", "16"]
    stage2 = ["--local_feat", "--freezecoarse", "--w_verts_refine", "60", "--w_kpts_refine", "0"]
    stage2 += ["--second_look", "--w_maps_refine", "30"]
    main_meshgraph.main([*run, *start, *stage2, "--nEpochs", "1"])
    log = (tmp_path / "log.txt").read_text()
    assert "verts_refine" in log and "maps_refine" in log
    eval_script.main([*run, "--resume", str(tmp_path / "checkpoint.pth.tar"), "--local_feat"])
    assert "pa_mpvpe_refined" in (tmp_path / "stanford_report.json").read_text()


def test_no_fit_to_an_outline_that_is_not_seen(runs, data, tmp_path, capsys):
    run = ["eval.py", "--data_dir", str(data), "--output_dir", str(tmp_path), "--local_feat"]
    run += ["--resume", str(runs / "stage2" / "checkpoint.pth.tar")]
    fails(capsys, [*run, "--refine", "outline"], "--refine outline", "sees no outline")


def test_contradictions_are_refused(data, shared, tmp_path, capsys):
    run = ["main.py", "--data_dir", str(data), "--output_dir", str(tmp_path), *SMALL]
    # before any work: the file that the backbone starts from does not exist
    early = [*run, "--w_maps", "1", "--backbone_weights", "nowhere.pth"]
    fails(capsys, early, "--w_maps", "--keypoint_maps")
    early = [*run, "--w_outline", "1", "--backbone_weights", "nowhere.pth"]
    fails(capsys, early, "--w_outline", "--outline")
    fails(capsys, [*run, "--outline", "--backbone_weights", "none"], "--w_outline")
    alone = [*run, "--outline", "--w_outline", "1", "--backbone_weights", "none"]
    fails(capsys, alone, "--keypoint_maps")
    refiner = ["main_meshgraph.py", *run[1:], "--backbone_weights", "none"]
    fails(capsys, [*refiner, "--w_maps_refine", "1"], "--w_maps_refine", "--second_look")
    fails(capsys, [*refiner, "--second_look"], "--second_look", "--w_maps_refine")
    fails(capsys, [*refiner, "--second_look", "--w_maps_refine", "1"], "--outline")
    fails(capsys, [*run, "--augment", "strong", "--no_augment"], "contradict each other")
    fails(capsys, [*run, "--freeze_backbone", "5"], "--freeze_backbone 5", "four maps")
    photographs = ["main.py", "--data_dir", str(shared / "samples"), "--output_dir", str(tmp_path)]
    fails(capsys, [*photographs, *SMALL, "--w_verts", "1"], "needed for --w_verts, and no")
