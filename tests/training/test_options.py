"""The command line: where each default comes from, what is refused, and in which words."""

import re

import pytest

from utils import command
from utils.errors import UserError
from utils.training import options
from utils.training.options import rule


def parse(*argv, rules=(), presets=(), unlabeled=True, **defaults):
    parser = options.parser("doc", "train_x.py", presets, unlabeled, **defaults)
    parser.add_argument("--temperature", type=command.positive, help="T")
    return options.parse(parser, rules, list(map(str, argv)))


def test_the_data_set_gives_the_protocol():
    args = parse()
    assert (args.labelnum, args.labeled_bs, args.unlabeled_bs) == (16, 2, 2)
    assert (args.net, args.augment, args.patch, args.n_filters) == (
        "vnet",
        "rot_flip",
        [112, 112, 80],
        16,
    )
    assert parse("--downsample", 2).patch == [64, 64, 32]
    assert parse("--dataset", "phantom").patch == [48, 48, 32]
    args = parse("--dataset", "ACDC")
    assert (args.labelnum, args.labeled_bs, args.unlabeled_bs) == (7, 12, 12)
    assert (args.net, args.augment, args.patch) == ("unet", "rotate", [256, 256])
    assert parse("--patch", 32, 32, 16).patch == [32, 32, 16]


def test_without_an_unlabelled_stream_the_labelled_one_takes_its_place():
    args = parse(unlabeled=False)
    assert args.labeled_bs == 4
    assert not hasattr(args, "unlabeled_bs")
    assert parse("--labeled_bs", 2, unlabeled=False).labeled_bs == 2


def test_the_command_line_wins_then_the_last_rule_that_holds_then_the_data_set():
    rules = [
        rule("paper, 3.1", temperature=1.93, labeled_bs=4),
        rule("ours", lambda args: args.labelnum <= 8, temperature=2.0),
    ]
    args = parse(rules=rules)
    assert (args.temperature, args.labeled_bs, args.unlabeled_bs) == (1.93, 4, 2)
    assert args.sources["temperature"] == args.sources["labeled_bs"] == "paper, 3.1"
    args = parse("--labelnum", 8, "--labeled_bs", 3, rules=rules)
    assert (args.temperature, args.labeled_bs) == (2.0, 3)
    assert args.sources["temperature"] == "ours"
    assert args.sources["labeled_bs"] == "command line"
    # a value given is one given, even where it is the default
    assert parse("--temperature", 1.93, "--labelnum", 8, rules=rules).temperature == 1.93


def test_a_later_rule_sees_what_an_earlier_one_set():
    rules = [rule("a", net="unet3d"), rule("b", lambda args: args.net == "unet3d", temperature=3.0)]
    assert parse(rules=rules).temperature == 3.0
    assert parse("--net", "vnet", rules=rules).temperature is None


def test_presets_are_rules_like_any_other():
    rules = [
        rule("paper", base_lr=0.5),
        rule("released code", lambda args: args.preset == "released", base_lr=0.25),
    ]
    presets = ("paper", "released")
    assert parse(rules=rules, presets=presets).base_lr == 0.5
    assert parse("--preset", "released", rules=rules, presets=presets).base_lr == 0.25
    assert parse("--preset", "released", "--base_lr", 2, rules=rules, presets=presets).base_lr == 2


def test_the_log_says_where_each_value_comes_from():
    lines = options.describe(
        parse("--seed", 3, rules=[rule("paper, Fig. 4", temperature=2.0)], base_lr=0.5)
    )
    assert "command line: seed=3" in lines
    assert "paper, Fig. 4: temperature=2.0" in lines
    (protocol,) = [line for line in lines if "labelnum=16" in line]
    assert protocol.startswith("custom of the field: UA-MT: ")
    for value in ("patch=112,112,80", "net=vnet", "n_filters=16", "normalization=batchnorm"):
        assert value in protocol.split()
    assert any(line.startswith("ours: ") and "base_lr=0.5" in line for line in lines)
    values = re.findall(r"(\w+)=", " ".join(lines))
    assert len(values) == len(set(values))  # each once


@pytest.mark.parametrize(
    ("argv", "option", "source"),
    [
        (["--dataset", "ACDC"], "net", "custom of the field: SSL4MIS"),
        (["--dataset", "BraTS2019"], "patch", "custom of the field: SSL4MIS"),
        (["--dataset", "BraTS2019"], "net", "custom of the field: UG-MCL, CML"),
        (["--dataset", "Pancreas"], "labeled_bs", "ours"),
        (["--dataset", "Pancreas2d"], "labeled_bs", "custom of the field: CoraNet"),
        (["--dataset", "Pancreas2d"], "net", "custom of the field: SSL4MIS"),
        (["--dataset", "endocardium"], "augment", "ours"),
        (["--dataset", "phantom"], "patch", "ours"),
        (["--downsample", 2], "patch", "ours"),
        (["--net", "unet3d"], "n_filters", "custom of the field: SSL4MIS"),
    ],
)
def test_a_protocol_says_whose_each_of_its_values_is(argv, option, source):
    assert parse(*argv).sources[option] == source


def test_the_help_of_net_names_all_networks_by_dimension(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "3-D: vnet, unet3d, resnet18, resnet34; 2-D: unet, unet_ronneberger, resnet34_2d" in text


def test_the_help_shows_what_always_holds(capsys):
    rules = [
        rule("paper, 3.1", temperature=1.93),
        rule("ours", lambda args: args.labelnum > 8, seed=7),
    ]
    with pytest.raises(SystemExit):
        parse("--help", rules=rules)
    text = " ".join(capsys.readouterr().out.split())
    assert "--temperature TEMPERATURE T (default: 1.93)" in text
    assert "(default: 1337)" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--patch", 30, 32, 32],
            "--patch 30 32 32: every extent must be a multiple of vnet's 16 16 16",
        ),
        (["--patch", 16, 16, 16], "--patch 16 16 16: one voxel is left"),
        (["--net", "resnet18", "--patch", 32, 32, 16], "--patch 32 32 16: one voxel is left"),
        (["--patch", 32, 32], "--patch 32 32: LA is 3-D, so give 3 numbers"),
        (["--downsample", 3], "--downsample 3: LA has no crop for it: give --patch"),
        (
            ["--dataset", "ACDC", "--downsample", 2],
            "--downsample 2: ACDC is of slices: take a smaller --patch",
        ),
        (["--net", "unet"], "--net unet is 2-D, LA is 3-D: choose from vnet, unet3d, resnet18"),
        (
            ["--dataset", "ACDC", "--net", "vnet"],
            "--net vnet is 3-D, ACDC is 2-D: choose from unet",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(argv, message):
    with pytest.raises(UserError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--labelnumm", "8"], "unrecognized arguments: --labelnumm 8; did you mean --labelnum?"),
        (["--labelnum", "0"], "argument --labelnum: 0 is not a whole number from 1"),
        (["--labelnum", "many"], "many is not a whole number from 1"),
        (["--base_lr", "nan"], "nan is not a number above 0"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--preset", "papr"], "argument --preset: invalid choice: 'papr'"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        parse(*argv, presets=("paper",))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_an_option_without_effect_is_refused_where_it_is_given():
    options.refuse_without_effect(parse(), ("temperature",), "--distill dice")
    with pytest.raises(UserError, match="--temperature has no effect with --distill dice"):
        options.refuse_without_effect(parse("--temperature", 2), ("temperature",), "--distill dice")
