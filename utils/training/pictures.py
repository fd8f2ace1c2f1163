"""Pictures of a network's predictions in TensorBoard, without a line in the training script."""

from dataclasses import dataclass

import torch
from torch import nn

from dataloaders.two_stream import Batch
from utils.training.tensorboard import Board


@dataclass(frozen=True)
class _Request:
    step: int
    batch: Batch
    board: Board


class Pictures:
    """Shows the first crop of a batch, its label and the prediction that the watched network makes
    of it while it learns.
    """

    def __init__(self):
        self._request: _Request | None = None

    def watch(self, network: nn.Module) -> None:
        """Take pictures of this network's forward passes."""
        network.register_forward_hook(self._see)

    def ask(self, step: int, batch: Batch, board: Board) -> None:
        """Show the next forward pass, which is one of this step and batch."""
        self._request = _Request(step, batch, board)

    def cancel(self) -> None:
        """Show nothing until `ask` is called again."""
        self._request = None

    def _see(self, module, inputs, output):
        # a pass without a gradient is a teacher's look, or over windows of a volume
        learning = module.training and torch.is_grad_enabled()
        if self._request is None or not learning:
            return
        asked = self._request
        self._request = None
        asked.board.images(asked.step, _pictures(asked.batch, inputs[0], output))


def _pictures(batch: Batch, image: torch.Tensor, output) -> dict[str, torch.Tensor]:
    """By tag the first crop `(*S)` of a network's input, and what belongs to it."""
    logits = output
    while not torch.is_tensor(logits):  # of several heads or networks the first
        logits = logits[0]
    classes = logits.shape[1]
    label = batch.label[0]
    if isinstance(output, list):  # binary networks; the first is that of the first class
        label = label == 1
    found = {
        "train/Image": image[0, 0],
        "train/Predicted_label": logits[0].detach().argmax(0) / (classes - 1),
    }
    if torch.equal(image[0], batch.image[0]):  # not where the script has mixed crops
        found["train/Groundtruth_label"] = label / (classes - 1)
    return found
