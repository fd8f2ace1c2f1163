"""What each script trains with unless told otherwise, against the papers' settings, written down by
hand.

A row names all that its rules and its data set decide, so that no rule can change, move or vanish
unseen.
"""

import re

import pytest
from conftest import ROOT

from dataloaders import DATASETS
from utils.reporting import experiments
from utils.reporting.scripts import load_script

# data set: patch, labelled and unlabelled samples a step, labelled units
SETS = {
    "LA": ([112, 112, 80], 2, 2, 16),
    "ACDC": ([256, 256], 12, 12, 7),
    "BraTS2019": ([96, 96, 96], 2, 2, 25),
    "Pancreas": ([96, 96, 96], 4, 4, 12),
    "Pancreas2d": ([192, 240], 2, 2, 32),
    "endocardium": ([256, 256], 2, 2, 5),
}
FIELD = {"max_iterations": 6000, "lr_step": 2500, "base_lr": 0.01, "normalization": "batchnorm"}
VNET, UNET = {"net": "vnet", "n_filters": 16}, {"net": "unet", "n_filters": 16}

SUPERVISED = FIELD | {"optimizer": "sgd"}
ADAM = FIELD | {"optimizer": "adam", "base_lr": 1e-3, "lr_step": 0}
DMD = FIELD | {"temperature": 1.93, "distill": "dice", "lambda_distill": 4.0}
FEW = {"temperature": 2.0}
KL = {"distill": "kl", "lambda_distill": 1.0}
SSNET = {"max_iterations": 30000, "lr_step": 0}
DTML = FIELD | {"consistency": 0.1, "dis_loss": "mask", "rampup": "gaussian", "unlabeled": 1}
UGMCL = FIELD | {
    "beta": 0.75,
    "consistency": 0.1,
    "threshold_start": 0.75,
    "passes": 8,
    "ema_decay": 0.99,
}
UGMCL |= {"terms": ["dis", "itc", "ctc"], "rampup": "gaussian", "unlabeled": 1}
UGMCL_CODE = UGMCL | {
    "max_iterations": 30000,
    "lr_step": 0,
    "beta": 1.0,
    "normalization": "instancenorm",
}
UNET3D = {"net": "unet3d", "n_filters": 16}
STEPS = FIELD | {"decay": "step"}
POLY = STEPS | {"decay": "poly", "max_iterations": 30000}
PI = {"consistency": 0.1, "rampup_share": 1.0}
MT = PI | {"ema_decay": 0.99, "consistency_on": "unlabeled"}
UAMT = MT | {"consistency_on": "all", "threshold_start": 0.75, "passes": 8}
ICT = PI | {"ema_decay": 0.99, "alpha": 0.2, "mix": "probabilities"}
TCSE = {"consistency": 1.0, "rampup_share": 0.75, "ema_decay": 0.99, "consistency_on": "all"}
TEMPENS = PI | {"ensemble_decay": 0.6}
GROWS = {"consistency": 0.1, "rampup_share": 1.0}
CROSS = {"consistency": 1.5, "rampup_share": 0.0, "consistency_on": "all"}
DAN = GROWS | {"discriminator_lr": 1e-4, "discriminator_filters": 64}
ENTROPY = GROWS | {"entropy_on": "all", "adversarial": 0}
ADVENT = {
    "consistency": 0.001,
    "rampup_share": 0.0,
    "discriminator_lr": 1e-4,
    "discriminator_filters": 64,
}
VAT = GROWS | {"distance": "kl", "xi": 10.0, "epsilon": 10.0}
PSEUDO = {"consistency": 1.0, "rampup_from": 1 / 6, "rampup_share": 1.0, "threshold": 0.0}
UNIMATCH = {"max_iterations": 15000, "base_lr": 0.01, "normalization": "batchnorm"}
UNIMATCH |= {"threshold": 0.95, "lambda_s": 0.25, "lambda_f": 0.5}
UNIMATCH |= {"jitter": 0.8, "noise": 0.2, "blur": None, "box_probability": 0.5}
UNIMATCH |= {"beta": 4.0, "box_share": None}
UNIMATCH_2D = {"max_iterations": 30000, "noise": None, "blur": 0.5, "beta": None}
UNIMATCH_2D = UNIMATCH | UNIMATCH_2D | {"box_share": [0.02, 0.4]}
ADMT = {"max_iterations": 15000, "base_lr": 0.01, "normalization": "batchnorm"}
ADMT |= {"consistency": 2.0, "rampup_share": 0.4, "ema_decay": 0.99, "copy_steps": 80}
ADMT |= {"longest_turn": 19, "threshold": 0.8, "loss_u": "ce", "ensemble": "entropy"}
ADMT |= {"vote": "mixed", "jitter": 0.8, "noise": 0.2, "blur": None, "beta": 4.0}
ADMT_2D = {"max_iterations": 30000, "rampup_share": 0.25, "copy_steps": 100}
ADMT_2D = ADMT | ADMT_2D | {"longest_turn": 50, "threshold": 0.95, "loss_u": "dice"}
ADMT_2D |= {"noise": None, "blur": 0.2}
CML = FIELD | {
    "pretrain_iterations": 2000,
    "max_iterations": 15000,
    "lambda_u": 1.0,
    "lambda_dis": 0.2,
    "beta": 2 / 3,
}
CML |= {"framework": "cml", "labeled_bs": 4, "unlabeled_bs": 4}
CML_BRATS = CML | {"pretrain_iterations": 10000, "max_iterations": 30000, "lr_step": 0}
CML_2D = CML_BRATS | {
    "lambda_u": 0.5,
    "lambda_dis": 0.1,
    "beta": 1 / 2,
    "labeled_bs": 2,
    "unlabeled_bs": 2,
}
BCP = FIELD | {"pretrain_iterations": 2000, "max_iterations": 15000, "alpha": 0.5}
BCP |= {"beta": 2 / 3, "ema_decay": 0.99, "labeled_bs": 4, "unlabeled_bs": 4}
BCP_2D = BCP | {"pretrain_iterations": 10000, "max_iterations": 30000, "lr_step": 0}
SEPARATE = FIELD | {"max_iterations": 15000, "consistency": 1.0, "rampup_share": 0.4}
SEPARATE |= {"xi": 10.0, "epsilon": 10.0, "separation": 0.1, "prototypes": 32}
SEPARATE_2D = SEPARATE | SSNET | {"consistency": 0.1, "rampup_share": 1.0, "epsilon": 6.0}
MCF = FIELD | {"consistency": 0.1, "rampup_share": 1.0, "rectification": 0.5}
MCF |= {"temperature": 0.1}
CORANET = {
    "pretrain_epochs": 30,
    "selftrain_epochs": 200,
    "passes": 1,
    "labeled_bs": 4,
    "unlabeled_bs": 4,
}
CORANET |= {
    "base_lr": 1e-3,
    "normalization": "instancenorm",
    "alpha": 5.0,
    "train": "full",
    "relabel_epochs": 5,
}
CORANET |= {"ema_decay": 0.99, "masks": "step", "updates": "three", "region_means": 0}
CORANET_ACDC = {"augment": "rotate_crop"}
UNCERTAINTY = {"uncertainty": "tta", "looks": 20, "certain_confidence": 0.8}
CHEAP = {"masks": "relabelling", "updates": "joint"}
CORANET_CODE = CORANET | CHEAP
CORANET_CODE |= {"pretrain_epochs": 60, "passes": 5, "labeled_bs": 8, "unlabeled_bs": 8}
CORANET_2D = CORANET | {
    "selftrain_epochs": 100,
    "labeled_bs": 2,
    "unlabeled_bs": 2,
    "normalization": "batchnorm",
}
DTC = FIELD | {"consistency": 1.0, "rampup_share": 1.0, "lambda_dis": 1.0}
LONG_2D = {"max_iterations": 30000, "lr_step": 0}
MCNET = FIELD | {"decoders": 2, "test_decoder": "mean", "temperature": 0.1, "lambda_seg": 0.5}
MCNET |= {"consistency": 1.0, "rampup_share": 1.0}
MCNET_CODE = MCNET | {"max_iterations": 15000, "lr_step": 0, "rampup_share": 0.4}
MCNET_2D = MCNET | LONG_2D | {"consistency": 0.1, "lambda_seg": 1.0}
FIRST = {"test_decoder": "first"}
URPC = FIELD | {"consistency": 0.1, "rampup_share": 1.0, "decay": "step"}
URPC_CODE = URPC | {"decay": "poly", "max_iterations": 30000}
SASSNET = FIELD | {"consistency": 0.01, "rampup_share": 1.0, "lambda_dis": 0.3}
SASSNET |= {"discriminator_lr": 1e-4, "discriminator_filters": 64}
WIDE = {"net": "unet_ronneberger", "n_filters": 64}
INSTANCE = {"normalization": "instancenorm"}
RESNET = {"net": "resnet18", "n_filters": 64}


@pytest.mark.parametrize(
    ("method", "dataset", "options", "expected"),
    [
        ("supervised", "LA", "", SUPERVISED | VNET | {"labeled_bs": 4}),
        ("supervised", "ACDC", "", SUPERVISED | UNET | {"labeled_bs": 24}),
        ("supervised", "Pancreas2d", "", SUPERVISED | UNET | {"labeled_bs": 4}),
        (
            "supervised",
            "ACDC",
            "--optimizer adam",
            ADAM | WIDE | {"labeled_bs": 4, "augment": "rotate_crop"},
        ),
        ("supervised", "Pancreas2d", "--optimizer adam", ADAM | WIDE | {"labeled_bs": 4}),
        (
            "supervised",
            "Pancreas2d",
            "--optimizer adam --net unet",
            ADAM | UNET | {"labeled_bs": 4},
        ),
        ("supervised", "Pancreas", "--optimizer adam", ADAM | VNET | INSTANCE | {"labeled_bs": 8}),
        ("dmd", "LA", "", DMD | VNET),
        ("dmd", "LA", "--labelnum 8", DMD | VNET | FEW),
        ("dmd", "LA", "--labelnum 4", DMD | VNET | FEW),
        ("dmd", "LA", "--labelnum 9", DMD | VNET),
        ("dmd", "LA", "--distill kl", DMD | VNET | KL),
        ("dmd", "ACDC", "--labelnum 3", DMD | UNET | FEW),
        ("dmd", "ACDC", "--labelnum 14", DMD | UNET),
        ("dmd", "ACDC", "--max_iterations 30000 --lr_step 0", DMD | UNET | FEW | SSNET),
        ("dmd", "BraTS2019", "", DMD | VNET),
        ("dtml", "LA", "", DTML | VNET),
        ("dtml", "LA", "--unlabeled 0", DTML | VNET | {"unlabeled": 0, "unlabeled_bs": 0}),
        ("dtml", "LA", "--preset released", DTML | VNET | {"consistency": 1.0}),
        ("dtml", "endocardium", "", DTML | UNET),
        ("ugmcl", "LA", "", UGMCL | VNET),
        ("ugmcl", "LA", "--preset released", UGMCL_CODE | UNET3D),
        ("ugmcl", "BraTS2019", "", UGMCL | VNET | {"patch": [112, 112, 80]}),
        ("ugmcl", "BraTS2019", "--preset released", UGMCL_CODE | UNET3D),
        ("ugmcl", "Pancreas", "", UGMCL | VNET),
        ("ugmcl", "ACDC", "", UGMCL | UNET),
        ("ugmcl", "ACDC", "--preset released", UGMCL_CODE | UNET),
        ("mt", "LA", "", MT | STEPS | VNET | {"warmup_share": 0.0}),
        ("mt", "BraTS2019", "", MT | POLY | VNET | {"warmup_share": 0.0}),
        ("mt", "ACDC", "", MT | POLY | UNET | {"warmup_share": 1 / 30}),
        ("mt", "Pancreas2d", "", MT | STEPS | UNET),
        ("uamt", "LA", "", UAMT | STEPS | VNET),
        ("uamt", "LA", "--preset released", UAMT | STEPS | VNET | {"consistency_on": "unlabeled"}),
        ("uamt", "ACDC", "", UAMT | POLY | UNET),
        ("uamt", "Pancreas", "", UAMT | STEPS | VNET),
        ("ict", "LA", "", ICT | STEPS | VNET),
        ("ict", "ACDC", "", ICT | POLY | UNET),
        ("ict", "endocardium", "", ICT | STEPS | UNET),
        ("tcse", "LA", "", TCSE | STEPS | VNET),
        ("tcse", "LA", "--preset released", TCSE | STEPS | VNET | {"consistency_on": "unlabeled"}),
        ("tcse", "ACDC", "", TCSE | POLY | UNET),
        ("pi", "LA", "", PI | STEPS | VNET),
        ("pi", "ACDC", "", PI | POLY | UNET),
        ("pi", "Pancreas2d", "", PI | STEPS | UNET),
        ("tempens", "LA", "", TEMPENS | STEPS | VNET),
        ("tempens", "ACDC", "", TEMPENS | POLY | UNET),
        ("cps", "LA", "", CROSS | STEPS | VNET),
        ("cps", "ACDC", "", CROSS | POLY | UNET),
        ("cps", "Pancreas", "", CROSS | STEPS | VNET),
        ("dan", "LA", "", DAN | STEPS | VNET),
        ("dan", "BraTS2019", "", DAN | POLY | VNET),
        ("dan", "endocardium", "", DAN | STEPS | UNET),
        ("entropy", "LA", "", ENTROPY | STEPS | VNET),
        ("entropy", "ACDC", "", ENTROPY | POLY | UNET),
        ("entropy", "LA", "--adversarial 1", ADVENT | STEPS | VNET),
        ("entropy", "BraTS2019", "--adversarial 1", ADVENT | POLY | VNET),
        ("vat", "LA", "", VAT | STEPS | VNET),
        ("vat", "ACDC", "", VAT | POLY | UNET | {"epsilon": 6.0}),
        ("vat", "Pancreas", "", VAT | STEPS | VNET),
        ("pseudo", "LA", "", PSEUDO | STEPS | VNET),
        ("pseudo", "ACDC", "", PSEUDO | POLY | UNET),
        ("unimatch", "LA", "", UNIMATCH | VNET),
        ("unimatch", "ACDC", "", UNIMATCH_2D | UNET),
        ("unimatch", "endocardium", "", UNIMATCH_2D | UNET),
        ("admt", "LA", "", ADMT | VNET),
        (
            "admt",
            "Pancreas",
            "",
            ADMT | VNET | {"longest_turn": 14, "labeled_bs": 2, "unlabeled_bs": 2},
        ),
        ("admt", "ACDC", "", ADMT_2D | UNET),
        ("admt", "Pancreas2d", "", ADMT_2D | UNET),
        ("cml", "LA", "--labelnum 8", CML | VNET),
        ("cml", "LA", "--preset released", CML | VNET),
        ("cml", "BraTS2019", "", CML_BRATS | VNET),
        ("cml", "Pancreas", "", CML | VNET),
        ("cml", "ACDC", "", CML_2D | UNET | {"labeled_bs": 12, "unlabeled_bs": 12}),
        ("cml", "Pancreas2d", "", CML_2D | UNET),
        ("cml", "endocardium", "", CML_2D | UNET),
        ("bcp", "LA", "", BCP | VNET),
        ("bcp", "BraTS2019", "", BCP | VNET),
        ("bcp", "Pancreas", "", BCP | VNET),
        ("bcp", "ACDC", "", BCP_2D | UNET | {"labeled_bs": 12, "unlabeled_bs": 12}),
        ("bcp", "endocardium", "", BCP_2D | UNET | {"labeled_bs": 2, "unlabeled_bs": 2}),
        ("ssnet", "LA", "", SEPARATE | VNET),
        ("ssnet", "LA", "--preset released", SEPARATE | VNET),
        ("ssnet", "Pancreas", "", SEPARATE | VNET),
        ("ssnet", "ACDC", "", SEPARATE_2D | UNET),
        ("ssnet", "Pancreas2d", "", SEPARATE_2D | UNET),
        ("mcf", "LA", "", MCF | VNET | {"augment": "crop"}),
        ("mcf", "BraTS2019", "", MCF | VNET | {"augment": "rot_flip"}),
        ("mcf", "ACDC", "", MCF | SSNET | UNET),
        ("dtc", "LA", "", DTC | VNET),
        ("dtc", "LA", "--preset released", DTC | VNET | {"lambda_dis": 0.3}),
        ("dtc", "Pancreas", "", DTC | VNET),
        ("dtc", "ACDC", "", DTC | UNET | LONG_2D),
        ("dtc", "endocardium", "", DTC | UNET),
        ("mcnet", "LA", "", MCNET | VNET),
        ("mcnet", "LA", "--decoders 3", MCNET_CODE | VNET | FIRST | {"decoders": 3}),
        ("mcnet", "LA", "--preset released", MCNET_CODE | VNET | FIRST),
        ("mcnet", "Pancreas", "", MCNET_CODE | VNET),
        ("mcnet", "BraTS2019", "", MCNET_CODE | VNET),
        ("mcnet", "ACDC", "", MCNET_2D | UNET),
        ("mcnet", "Pancreas2d", "--preset released", MCNET_2D | UNET | FIRST),
        ("urpc", "LA", "", URPC | VNET),
        ("urpc", "BraTS2019", "--net unet3d", URPC_CODE | UNET3D | INSTANCE),
        ("urpc", "ACDC", "", URPC_CODE | UNET),
        ("urpc", "Pancreas2d", "", URPC | UNET),
        ("sassnet", "LA", "", SASSNET | VNET),
        ("sassnet", "LA", "--labelnum 8", SASSNET | VNET | {"consistency": 0.015}),
        ("sassnet", "ACDC", "", SASSNET | UNET | LONG_2D | {"consistency": 0.015}),
        ("sassnet", "BraTS2019", "", SASSNET | VNET),
        ("coranet", "Pancreas", "", CORANET | VNET | {"augment": "crop"}),
        ("coranet", "LA", "", CORANET | VNET | {"augment": "rot_flip"}),
        ("coranet", "Pancreas", "--net resnet18", CORANET | RESNET),
        ("coranet", "Pancreas", "--preset released", CORANET_CODE | VNET),
        ("coranet", "Pancreas2d", "", CORANET_2D | WIDE),
        ("coranet", "endocardium", "", CORANET_2D | WIDE | {"augment": "affine"}),
        ("coranet", "ACDC", "", CORANET_2D | WIDE | CORANET_ACDC),
        ("coranet", "Pancreas2d", "--preset released", CORANET_2D | WIDE | CHEAP),
        ("coranet_ovr", "ACDC", "", CORANET_2D | WIDE | CORANET_ACDC),
        ("coranet_ovr", "LA", "", CORANET | VNET),
        (
            "coranet_uncertainty",
            "Pancreas2d",
            "",
            {key: CORANET_2D[key] for key in CORANET_2D if key not in ("alpha", "masks")}
            | WIDE
            | UNCERTAINTY,
        ),
    ],
)
def test_defaults_are_the_papers(method, dataset, options, expected):
    patch, labeled_bs, unlabeled_bs, labelnum = SETS[dataset]
    expected = {
        "patch": patch,
        "labeled_bs": labeled_bs,
        "unlabeled_bs": unlabeled_bs,
        "labelnum": labelnum,
    } | expected
    if method == "supervised":
        del expected["unlabeled_bs"]
    flags = options.split()
    expected |= {"labelnum": int(flags[1])} if flags[:1] == ["--labelnum"] else {}
    found = experiments.options_of(
        ROOT / "code" / f"train_{method}.py", "--dataset", dataset, *flags
    )
    assert {key: found.get(key) for key in expected} == expected


def sources_of(method, *argv):
    return load_script(ROOT / "code" / f"train_{method}.py").parse(list(argv)).sources


METHODS = sorted(path.stem.removeprefix("train_") for path in (ROOT / "code").glob("train_*.py"))
SOURCE = re.compile(
    r"command line"
    r"|paper, abstract"
    r"|paper, (CoraNet )?((I|II|III|IV)-[A-F]|\d\.\d|Fig\. \d\w?|Table \w+|Algorithm 1)(: .+)?"
    r"|released code(: .+)?"
    r"|second hand: .+"
    r"|custom of the field: .+"
    r"|ours(: .+)?"
)


@pytest.mark.parametrize("dataset", [name for name in DATASETS if not name.startswith("own")])
@pytest.mark.parametrize("method", METHODS)
def test_each_default_has_one_of_five_sources(method, dataset):
    presets = [[]]
    if "--preset" in (ROOT / "code" / f"train_{method}.py").read_text():
        presets.append(["--preset", "released"])
    for preset in presets:
        found = sources_of(method, "--dataset", dataset, *preset)
        assert [source for source in found.values() if not SOURCE.fullmatch(source)] == []


UAMT, CODE = "custom of the field: UA-MT", "released code"
SUMMARIES = "second hand: summaries of the paper"
CPS, SSL4MIS = "released code: TorchSemiSeg", "released code: SSL4MIS"
OF_LA = "patch labeled_bs unlabeled_bs augment labelnum net"


def all_from(source, names):
    return dict.fromkeys(names.split(), source)


@pytest.mark.parametrize(
    ("method", "argv", "sources"),
    [
        ("supervised", "", {"base_lr": UAMT, "lr_step": UAMT, "max_iterations": UAMT}),
        ("supervised", "", {"labeled_bs": "ours"}),
        (
            "supervised",
            "--dataset ACDC --optimizer adam",
            {
                "net": "paper, CoraNet IV-A",
                "base_lr": "paper, CoraNet IV-A",
                "labeled_bs": "paper, CoraNet IV-A",
                "patch": "paper, CoraNet IV-B",
                "augment": "paper, CoraNet IV-F",
                "lr_step": "ours",
                "max_iterations": "ours",
            },
        ),
        (
            "supervised",
            "--dataset Pancreas --optimizer adam",
            {
                "normalization": "released code: CoraNet",
                "base_lr": "paper, CoraNet IV-A",
                "labelnum": "paper, CoraNet IV-D",
                "labeled_bs": "ours",
            },
        ),
        ("supervised", "--dataset phantom2d --optimizer adam", {"net": "ours", "base_lr": "ours"}),
        ("dmd", "", all_from("paper, 3.1", "temperature lambda_distill net labelnum base_lr")),
        ("dmd", "--labelnum 8", {"temperature": "paper, 3.1"}),
        ("dmd", "--labelnum 4", {"temperature": "ours"}),
        (
            "dmd",
            "--dataset ACDC",
            all_from("ours", "temperature lambda_distill base_lr lr_step max_iterations"),
        ),
        ("dmd", "--distill kl", {"lambda_distill": "ours", "temperature": "ours"}),
        (
            "dmd",
            "--distill kl --labelnum 8",
            {"lambda_distill": "paper, Fig. 4", "temperature": "ours", "distill": "command line"},
        ),
        ("dtml", "", {"consistency": "paper, 3.2", "dis_loss": "paper, 4.2", "rampup": UAMT}),
        ("dtml", "", all_from("paper, 4.1", f"base_lr lr_step max_iterations {OF_LA}")),
        ("dtml", "--downsample 2", {"patch": "ours", "net": "paper, 4.1"}),
        ("dtml", "--preset released", {"consistency": CODE, "rampup": CODE}),
        ("dtml", "--dataset phantom", all_from("ours", f"consistency base_lr lr_step {OF_LA}")),
        ("dtml", "--dataset Pancreas", all_from("ours", "consistency base_lr max_iterations")),
        ("ugmcl", "", {"passes": UAMT, "ema_decay": UAMT, "labelnum": "paper, 4.1"}),
        ("ugmcl", "", {"rampup": "custom of the field: Mean Teacher"}),
        ("ugmcl", "", all_from("paper, 4.2", "patch labeled_bs unlabeled_bs augment net")),
        (
            "ugmcl",
            "--dataset phantom",
            all_from("ours", f"beta threshold_start consistency base_lr lr_step {OF_LA}"),
        ),
        ("ugmcl", "", {"beta": "paper, 4.3", "threshold_start": "paper, 4.3"}),
        ("ugmcl", "", {"consistency": "paper, 4.2", "max_iterations": "paper, 4.2"}),
        (
            "ugmcl",
            "--dataset BraTS2019",
            {"patch": "paper, 4.2", "labelnum": "paper, 4.1", "net": "paper, 4.2"},
        ),
        ("ugmcl", "--preset released", {"beta": CODE, "lr_step": CODE, "net": CODE}),
        (
            "ugmcl",
            "--dataset BraTS2019 --preset released",
            all_from(CODE, "patch rampup consistency"),
        ),
        ("cps", "", {"consistency": "ours", "rampup_share": CPS, "consistency_on": CPS}),
        ("dan", "", all_from("ours", "consistency rampup_share discriminator_lr")),
        ("dan", "--dataset ACDC", all_from(SSL4MIS, "consistency decay discriminator_filters")),
        ("entropy", "", all_from("ours", "consistency rampup_share entropy_on")),
        ("entropy", "--dataset ACDC", all_from(SSL4MIS, "consistency rampup_share entropy_on")),
        ("entropy", "--adversarial 1", {"consistency": "released code: ADVENT"}),
        ("vat", "", {"epsilon": "custom of the field: SS-Net", "consistency": "ours"}),
        ("vat", "--dataset Pancreas", all_from("ours", "xi epsilon")),
        ("pseudo", "", all_from("ours", "consistency rampup_from threshold")),
        ("unimatch", "", all_from("ours", "threshold lambda_s lambda_f box_probability")),
        ("unimatch", "", all_from("custom of the field: AD-MT", "noise beta max_iterations")),
        (
            "unimatch",
            "--dataset ACDC",
            all_from(CODE, "threshold lambda_s blur jitter box_share labeled_bs net"),
        ),
        ("unimatch", "--dataset ACDC", {"max_iterations": "custom of the field: SSL4MIS"}),
        ("admt", "", all_from(CODE, "threshold consistency longest_turn max_iterations noise")),
        ("admt", "", {"vote": "ours", "labelnum": UAMT}),
        ("admt", "--dataset ACDC", all_from(CODE, "threshold loss_u longest_turn blur")),
        ("admt", "--dataset BraTS2019", all_from("ours", "threshold longest_turn consistency")),
        ("mt", "", all_from("custom of the field: UA-MT", "base_lr lr_step max_iterations decay")),
        ("mt", "", all_from("ours", "consistency ema_decay consistency_on warmup_share")),
        (
            "mt",
            "--dataset ACDC",
            all_from(SSL4MIS, "decay max_iterations consistency ema_decay warmup_share"),
        ),
        ("uamt", "", all_from("released code: UA-MT", "lr_step passes ema_decay consistency_on")),
        ("uamt", "--dataset ACDC", all_from(SSL4MIS, "decay max_iterations passes consistency")),
        ("uamt", "--dataset ACDC", {"consistency_on": "ours"}),
        ("uamt", "--dataset Pancreas", all_from("ours", "passes base_lr max_iterations")),
        ("ict", "", all_from("ours", "alpha mix consistency ema_decay")),
        ("ict", "--dataset BraTS2019", all_from(SSL4MIS, "alpha mix consistency decay")),
        ("tcse", "", {"consistency_on": "paper, abstract"}),
        ("tcse", "--preset released", {"consistency_on": "released code: TCSM"}),
        ("tcse", "", all_from("released code: TCSM", "consistency rampup_share")),
        ("pi", "", all_from("ours", "consistency rampup_share")),
        ("tempens", "", {"ensemble_decay": "released code: Laine & Aila", "consistency": "ours"}),
        ("dtc", "", all_from("released code: DTC", "consistency base_lr lr_step max_iterations")),
        ("dtc", "", {"lambda_dis": SUMMARIES, "rampup_share": "ours"}),
        ("dtc", "--preset released", {"lambda_dis": "released code: DTC"}),
        ("dtc", "--dataset ACDC", {"max_iterations": "custom of the field: MC-Net"}),
        ("dtc", "--dataset Pancreas", all_from("ours", "consistency base_lr max_iterations")),
        ("mcnet", "", all_from(SUMMARIES, "max_iterations lr_step test_decoder")),
        ("mcnet", "", {"consistency": "released code: MC-Net", "rampup_share": "ours"}),
        ("mcnet", "--decoders 3", {"max_iterations": "released code: MC-Net"}),
        (
            "mcnet",
            "--decoders 3",
            {"test_decoder": "second hand: MC-Net's author, issue 14 of the code"},
        ),
        ("mcnet", "--dataset BraTS2019", all_from("ours", "max_iterations lr_step consistency")),
        ("urpc", "", {"max_iterations": UAMT, "consistency": "ours"}),
        (
            "urpc",
            "--dataset ACDC",
            all_from("released code: SSL4MIS", "base_lr max_iterations consistency"),
        ),
        (
            "sassnet",
            "",
            all_from("released code: SASSNet", "consistency lambda_dis discriminator_lr base_lr"),
        ),
        ("sassnet", "--labelnum 4", {"consistency": "ours"}),
        ("cml", "", {"lr_step": CODE, "base_lr": "paper, 4.2", "beta": "paper, 4.2"}),
        ("cml", "", {"labeled_bs": "paper, 4.2", "pretrain_iterations": "paper, 4.2"}),
        ("cml", "", {"patch": "paper, 4.2", "net": "paper, 4.2", "labelnum": UAMT}),
        ("cml", "--dataset ACDC", {"lr_step": CODE, "lambda_u": "paper, 4.2"}),
        (
            "cml",
            "--dataset ACDC",
            all_from("paper, 4.2", "patch net labeled_bs unlabeled_bs base_lr"),
        ),
        ("cml", "--dataset BraTS2019", {"lr_step": "ours", "max_iterations": "paper, 4.2"}),
        ("cml", "--dataset BraTS2019", {"patch": "paper, 4.2", "labelnum": "paper, Table 3"}),
        ("cml", "--dataset Pancreas", all_from("ours", "lr_step lambda_dis base_lr labeled_bs")),
        ("cml", "--dataset endocardium", {"beta": "ours", "max_iterations": "ours"}),
        ("bcp", "", all_from(f"{CODE}: BCP", "alpha beta pretrain_iterations labeled_bs net")),
        ("bcp", "--dataset Pancreas", all_from("ours", "alpha max_iterations base_lr labeled_bs")),
        ("bcp", "--dataset ACDC", all_from(f"{CODE}: BCP", "lr_step ema_decay unlabeled_bs")),
        ("ssnet", "", all_from(f"{CODE}: SS-Net", "xi epsilon separation consistency lr_step")),
        ("ssnet", "--dataset ACDC", all_from(f"{CODE}: SS-Net", "epsilon rampup_share")),
        ("ssnet", "--dataset BraTS2019", all_from("ours", "epsilon prototypes max_iterations")),
        ("mcf", "", all_from(f"{CODE}: MCF", "augment rectification temperature labelnum")),
        ("mcf", "--dataset Pancreas", all_from("ours", "rectification max_iterations")),
        ("mcf", "--dataset ACDC", {"max_iterations": "custom of the field: MC-Net"}),
    ],
)
def test_a_default_is_the_papers_where_the_paper_says_it(method, argv, sources):
    found = sources_of(method, *argv.split())
    assert {name: found[name] for name in sources} == sources
