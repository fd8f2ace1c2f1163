"""Test a run on the axial slices of Pancreas-CT, CoraNet's 2-D setting.

    python code/test_Pancreas2d.py                          # runs/Pancreas2d/coranet_32/seed1337
    python code/test_Pancreas2d.py --metrics dice jaccard hd95 asd

Each slice is resized to the training patch and predicted, with softmax averaged over networks, and
its labels are resized back, both with order 0 (nearest). Slices as prepare_pancreas.py --for 2d
makes them have the patch's size already. No component is removed. Then the whole volume is scored:
Dice, precision and recall in percent and HD in voxels, the columns of CoraNet's tables, with
medpy's definitions, as mean ± sample sd over the test cases.

Writes a CSV of all cases, a JSON summary, figures (contours, errors) and NIfTI files into
<run>/test/<checkpoint>/. The options that change a number are part of the folder's name (last_nms1,
…).
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
