"""Passes over whole unlabelled images between two steps, as pseudo-labels need them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dataloaders.two_stream import TwoStream
from utils.distributed import gather, share_out
from utils.errors import UserError
from utils.inference import check_stride, usual_stride
from utils.training.run import Run


@torch.no_grad()
def find_in_unlabelled(
    find: Callable[[Tensor], Any], net: nn.Module, data: TwoStream, steps: range, job: Run
) -> dict[int, Any]:
    """What `find` makes of the unlabelled images that `steps` will show, by case.

    The processes share the cases, and each gets what all have found. `net` is in eval mode
    meanwhile. A signal leaves the run at the step before `steps`.

    Args:
        find: image `(*S)` to anything that can be sent to another process.
        net: the network that `find` asks.
        data: whose unlabelled stream the images are of.
        steps: those to come.
        job: the run.
    """
    cases = set()
    for step in steps:
        cases.update(data.samples(step)[data.labeled_bs :])
    found = {}
    net.eval()
    for case in share_out(sorted(cases)):
        job.leave_if_asked(steps.start - 1)
        found[case] = find(data.volumes.images[case])
    net.train()
    of_all = {}
    for share in gather(found):
        of_all.update(share)
    return of_all


def window_stride(
    given: Sequence[int] | None, patch: Sequence[int], option: str
) -> Sequence[int] | None:
    """The stride of windows over a whole image: half a patch by default, None for slices.

    Args:
        given: value of the option, or None.
        patch: extents of a window or a slice.
        option: name of the option, for the message.

    Raises:
        UserError: a stride for slices, or one that leaves gaps.
    """
    if given is None:
        return usual_stride(None, patch)
    if len(patch) == 2:
        raise UserError(f"{option}: slices are labelled whole, without windows")
    check_stride(given, patch, option)
    return given
