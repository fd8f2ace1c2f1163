"""Test a run on the endocardium data of York University, CoraNet's second 2-D setting.

    python code/test_endocardium.py                             # runs/endocardium/coranet_5/seed1337

Each slice is resized to the training patch, predicted, softmax averaged over networks, and its
labels resized back, both with order 0 (nearest); no filter of components. A subject's slices come
from all levels and times, in no order that distances could be measured across: each slice is scored
by itself, and a subject by the mean of those that show the endocardium in reference or prediction.
Dice, precision and recall in percent and HD in pixels, as CoraNet's table has it, with medpy's
definitions, mean ± sample sd over subjects. `--nms 1` keeps the largest component of each slice.
Writes per-case CSV, summary JSON, figures (contours, errors) and NIfTI into
<run>/test/<checkpoint>/; the options that move a number are part of the folder's name.
"""

import _root  # noqa: F401
from utils import command
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def main():
    test = Test(__doc__, ("endocardium",), metrics=("dice", "precision", "recall", "hd"))
    test.evaluate(mean_probability(test.networks), per_slice=True)


if __name__ == "__main__":
    command.run(main)
