"""Test a run on Pancreas-CT, as the papers' tables report it.

    python code/test_Pancreas.py                                # runs/Pancreas/coranet_12/seed1337
    python code/test_Pancreas.py --stride 16 16 16              # as MC-Net

Sliding window with stride 16, 16, 4 (CoraNet), softmax averaged over windows and networks, no
filter of components; Dice and Jaccard in percent, 95HD and ASD in voxels of 1 mm with medpy's
definitions, mean ± sample sd over the test cases. `--metrics dice jaccard hd asd` shows HD instead.
Writes per-case CSV, summary JSON, figures (contours, errors, surfaces) and NIfTI into
<run>/test/<checkpoint>/; the options that move a number are part of the folder's name
(last_stride16-16-16, …).
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("Pancreas",))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
