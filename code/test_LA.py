"""Test a run on the left atria (or on the phantom, which has their layout), as the papers' tables
report it.

    python code/test_LA.py                                        # runs/LA/coranet_16/seed1337, its last iteration
    python code/test_LA.py --method supervised --labelnum 8 --seed 1
    python code/test_LA.py --run runs/phantom/coranet_8/seed1337 --gpu -1

Sliding window with stride 18, 18, 4 (9, 9, 2 at half resolution), softmax averaged over windows and
networks, largest 26-connected component; Dice and Jaccard in percent, 95HD and ASD in voxels with
medpy's definitions, mean ± sample sd. Writes per-case CSV, summary JSON, figures (contours, errors,
surfaces) and NIfTI into <run>/test/<checkpoint>/; the options that move a number are part of the
folder's name (last_nms0, last_cases3, …), so that a quick look never overwrites the result for the
paper.
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("LA", "phantom"), nms=1)
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
