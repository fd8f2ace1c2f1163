"""Test a run on the hearts of ACDC, or on the phantom's axial slices, as the papers' tables report
it.

    python code/test_ACDC.py                                # runs/ACDC/coranet_7/seed1337
    python code/test_ACDC.py --method cml --labelnum 3
    python code/test_ACDC.py --split val                    # the 20 validation volumes
    python code/test_ACDC.py --run runs/phantom2d/coranet_16/seed1337

Each slice is resized to the training patch and predicted, with softmax averaged over networks, and
its labels are resized back, both with order 0 (nearest). No component is removed. Then the whole
volume is scored at its own resolution: Dice and Jaccard in percent, 95HD and ASD in voxels with
medpy's definitions, of RV, Myo and LV and their mean, as mean ± sample sd over the 40 test volumes.

Writes a CSV of all cases, a JSON summary, figures (contours, errors) and NIfTI files into
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
