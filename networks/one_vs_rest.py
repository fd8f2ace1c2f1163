"""One binary network a foreground class, joined by a confidence-weighted vote (CoraNet's
multi-class form).
"""

import torch
import torch.nn as nn

from networks import NETWORKS, network_class


class OneVsRest(nn.Module):
    """`num_classes - 1` networks of two classes each, its own and the rest.

    Args:
        network: their name in `networks.NETWORKS`.
        in_channels: channels of the image.
        num_classes: background included.
        options: further ones of each network's constructor.
    """

    def __init__(self, network, in_channels=1, num_classes=2, **options):
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
        self.dims, self.multiples = self.networks[0].dims, self.networks[0].multiples

    def checkpoint_activations(self, on=True):
        """`SegmentationNetwork.checkpoint_activations` of each network."""
        for network in self.networks:
            network.checkpoint_activations(on)

    def segment(self, x):
        """Logits `(B, num_classes, *S)` whose largest is the vote's winner: 0, and l_1 - l_0 of
        each class's network.

        Each network votes with its confidence for its class, or for all others and the background.
        Say that W is the weight of all votes of the second kind. The background has W; a class
        whose network votes for it, with p > 1/2, has W + p; one whose network votes against has
        less than W. So the most confident p > 1/2 wins, or else the background, as in the largest
        of 0 and log(p / (1 - p)) = l_1 - l_0.
        """
        logits = [network.segment(x) for network in self.networks]
        margins = [one[:, 1:] - one[:, :1] for one in logits]
        return torch.cat((torch.zeros_like(margins[0]), *margins), 1)

    def forward(self, x):
        """What each class's network gives, a list over the foreground classes; `segment` of those
        for inference.
        """
        if self.config.get("inference"):
            return self.segment(x)
        return [network(x) for network in self.networks]
