"""One binary network per foreground class, joined by a vote (CoraNet's multi-class form)."""

import torch
import torch.nn as nn
from torch import Tensor

from networks import NETWORKS, network_class


class OneVsRest(nn.Module):
    """`num_classes - 1` networks of two classes each, its own and the rest.

    Args:
        network: name of their architecture in `networks.NETWORKS`.
        in_channels: channels of the image.
        num_classes: background included.
        options: further arguments of each network's constructor.

    Raises:
        ValueError: no such architecture, or fewer than two classes.
    """

    def __init__(self, network: str, in_channels: int = 1, num_classes: int = 2, **options):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"network is one of {', '.join(NETWORKS)}, got {network!r}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.config = {
            "network": network,
            "in_channels": in_channels,
            "num_classes": num_classes,
            **options,
        }
        self.networks = nn.ModuleList(
            network_class(network)(in_channels, 2, **options) for _ in range(num_classes - 1)
        )
        self.dims = self.networks[0].dims
        self.multiples = self.networks[0].multiples

    def checkpoint_activations(self, on: bool = True) -> None:
        """`SegmentationNetwork.checkpoint_activations` of each network."""
        for network in self.networks:
            network.checkpoint_activations(on)

    def segment(self, x: Tensor) -> Tensor:
        """The vote on images `(B, in_channels, *S)`, as logits `(B, num_classes, *S)`.

        They are 0 for the background and l_1 - l_0 of its network for each class; the largest wins.
        That is a vote weighted by confidence. A network with p > 1/2 votes for its class with
        weight p; one with p < 1/2 votes for everything but its class, with weight 1 - p. Let W be
        the weight of all votes against a class. The background collects W, a class that is voted
        for W + p, and a class that is voted against less than W. So the class of the largest
        p > 1/2 wins, or the background where there is none; and p > 1/2 is l_1 - l_0 > 0.
        """
        logits = [network.segment(x) for network in self.networks]
        margins = [one[:, 1:] - one[:, :1] for one in logits]
        return torch.cat((torch.zeros_like(margins[0]), *margins), 1)

    def forward(self, x: Tensor, first_only: bool = False) -> "list | Tensor":
        """The outputs of the networks, a list over the foreground classes.

        `first_only` asks each network for its first branch only. A network that was built for
        inference gives `segment` in its place.
        """
        if self.config.get("inference"):
            return self.segment(x)
        return [network(x, first_only) for network in self.networks]
