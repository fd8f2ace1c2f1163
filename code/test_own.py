"""Test a run on one's own images, in 3-D or slice by slice.

    python code/test_own.py --method supervised         # runs/own/supervised_<labelnum>/seed1337
    python code/test_own.py --dataset own2d --method cml
    python code/test_own.py --run runs/own/coranet_4/seed1337 --nms 1 --empty nan

A sliding window whose stride is half a patch predicts volumes. In 2-D each slice is resized to the
training patch and predicted, and its labels are resized back (nearest). Softmax is averaged over
windows and networks. Every case of test.list, or with `--split val` of val.list, is scored as it
was prepared, at its prepared spacing: Dice and Jaccard in percent, 95HD and ASD in voxels with
medpy's definitions, of each class and their mean, as mean ± sample sd.

Writes a CSV of all cases, a JSON summary, figures (contours, errors, and of volumes surfaces) and
NIfTI files into <run>/test/<checkpoint>/. The options that change a number are part of the folder's
name.
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
