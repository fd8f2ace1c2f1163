"""Test a run on the gliomas of BraTS 2019 (FLAIR, whole tumour), as the papers' tables report it.

    python code/test_BraTS2019.py                           # runs/BraTS2019/coranet_25/seed1337
    python code/test_BraTS2019.py --method ugmcl --labelnum 50
    python code/test_BraTS2019.py --split val               # the 25 validation cases

A sliding window with stride 64, 64, 64 predicts each volume, with softmax averaged over windows and
networks. No component is removed. Dice and Jaccard are in percent, 95HD and ASD in voxels of 1 mm
with medpy's definitions, as mean ± sample sd over the 60 test cases.

Writes a CSV of all cases, a JSON summary, figures (contours, errors, surfaces) and NIfTI files into
<run>/test/<checkpoint>/. The options that change a number are part of the folder's name (last_nms1,
last_val, …).
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation import options
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def parse(argv=None):
    return options.parse(__doc__, __file__, argv)


def main(argv=None):
    test = Test(parse(argv))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
