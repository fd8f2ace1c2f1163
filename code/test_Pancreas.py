"""Test a run on Pancreas-CT, as the papers' tables report it.

    python code/test_Pancreas.py                            # runs/Pancreas/coranet_12/seed1337
    python code/test_Pancreas.py --stride 16 16 16          # as MC-Net

A sliding window with stride 16, 16, 4 (CoraNet) predicts each volume, with softmax averaged over
windows and networks. No component is removed. Dice and Jaccard are in percent, 95HD and ASD in
voxels of 1 mm with medpy's definitions, as mean ± sample sd over the test cases; `--metrics dice
jaccard hd asd` shows HD instead of 95HD.

Writes a CSV of all cases, a JSON summary, figures (contours, errors, surfaces) and NIfTI files into
<run>/test/<checkpoint>/. The options that change a number are part of the folder's name
(last_stride16-16-16, …).
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
