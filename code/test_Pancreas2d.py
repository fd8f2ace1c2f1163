"""Test a run on the axial slices of Pancreas-CT, CoraNet's 2-D setting.

    python code/test_Pancreas2d.py                              # runs/Pancreas2d/coranet_31/seed1337
    python code/test_Pancreas2d.py --metrics dice jaccard hd95 asd

Each slice is resized to the training patch, predicted, softmax averaged over networks, and its
labels resized back, both with order 0 (nearest); no filter of components. The whole volume is then
scored: Dice, precision and recall in percent and HD in voxels of 1 mm, as CoraNet's tables have it,
with medpy's definitions, mean ± sample sd over the test cases. Writes per-case CSV, summary JSON,
figures (contours, errors) and NIfTI into <run>/test/<checkpoint>/; the options that move a number
are part of the folder's name (last_nms1, …).
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("Pancreas2d",), metrics=("dice", "precision", "recall", "hd"))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
