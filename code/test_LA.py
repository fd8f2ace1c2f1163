"""Test a run on the left atria, or on the phantom, which has their layout, as the papers' tables
report it.

    python code/test_LA.py                                  # runs/LA/coranet_16/seed1337
    python code/test_LA.py --method supervised --labelnum 8 --seed 1
    python code/test_LA.py --run runs/phantom/coranet_8/seed1337 --gpu -1

The checkpoint is that of the last iteration. A sliding window with stride 18, 18, 4 (9, 9, 2 at
half resolution) predicts each volume, with softmax averaged over windows and networks, and the
largest 26-connected component is kept. Dice and Jaccard are in percent, 95HD and ASD in voxels with
medpy's definitions, as mean ± sample sd.

Writes a CSV of all cases, a JSON summary, figures (contours, errors, surfaces) and NIfTI files into
<run>/test/<checkpoint>/. The options that change a number are part of the folder's name (last_nms0,
last_cases3, …), so that a quick look never overwrites the result for the paper.
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
