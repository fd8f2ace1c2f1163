"""Test a run on the endocardium data of York University, CoraNet's second 2-D setting.

    python code/test_endocardium.py                         # runs/endocardium/coranet_5/seed1337

Each slice is resized to the training patch and predicted, with softmax averaged over networks, and
its labels are resized back, both with order 0 (nearest). No component is removed. A subject's
slices come from all levels and times, in no order that distances could be measured across: each
slice is scored by itself, and a subject by the mean of those that show the endocardium in reference
or prediction. Dice, precision and recall are in percent and HD in pixels, the columns of CoraNet's
table, with medpy's definitions, as mean ± sample sd over subjects. `--nms 1` keeps the largest
component of each slice.

Writes a CSV of all cases, a JSON summary, figures (contours, errors) and NIfTI files into
<run>/test/<checkpoint>/. The options that change a number are part of the folder's name.
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
