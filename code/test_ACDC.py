"""Test a run on the hearts of ACDC (or on the phantom's axial slices), as the papers' tables report
it.

    python code/test_ACDC.py                                    # runs/ACDC/coranet_7/seed1337
    python code/test_ACDC.py --method cml --labelnum 3
    python code/test_ACDC.py --split val                        # the 20 validation volumes
    python code/test_ACDC.py --run runs/phantom2d/coranet_16/seed1337

Each slice is resized to the training patch, predicted, softmax averaged over networks, and its
labels resized back, both with order 0 (nearest); no filter of components. The whole volume is then
scored at its own resolution: Dice and Jaccard in percent, 95HD and ASD in voxels with medpy's
definitions, of RV, Myo and LV and their mean, mean ± sample sd over the 40 test volumes. Writes
per-case CSV, summary JSON, figures (contours, errors) and NIfTI into <run>/test/<checkpoint>/; the
options that move a number are part of the folder's name (last_nms1, last_val, …).
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("ACDC", "phantom2d"))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
