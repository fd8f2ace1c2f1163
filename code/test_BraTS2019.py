"""Test a run on the gliomas of BraTS 2019 (FLAIR, whole tumour), as the papers' tables report it.

    python code/test_BraTS2019.py                               # runs/BraTS2019/coranet_25/seed1337
    python code/test_BraTS2019.py --method ugmcl --labelnum 50
    python code/test_BraTS2019.py --split val                   # the 25 validation cases

Sliding window with stride 64, 64, 64, softmax averaged over windows and networks, no filter of
components; Dice and Jaccard in percent, 95HD and ASD in voxels of 1 mm with medpy's definitions,
mean ± sample sd over the 60 test cases. Writes per-case CSV, summary JSON, figures (contours,
errors, surfaces) and NIfTI into <run>/test/<checkpoint>/; the options that move a number are part
of the folder's name (last_nms1, last_val, …).
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("BraTS2019",))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
