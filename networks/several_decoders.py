"""One encoder with several decoders, which differ in how they upsample (MC-Net; Wu et al., MICCAI
2021; MC-Net+; Wu et al., MedIA 2022).

It is built on any network of `networks.network_class`, whose encoder the further decoders share.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from networks import NETWORKS, network_class
from networks.base import UPSAMPLINGS

TESTED = ("mean", "first")


class SeveralDecoders(nn.Module):
    """A decoder and a head for each of the `upsamplings`, after one encoder.

    Args:
        network: name of the architecture in `networks.NETWORKS`.
        in_channels: channels of the image.
        num_classes: background included.
        upsamplings: of each decoder, `transposed`, `linear` or `nearest`.
        test_decoder: what `segment` gives, the `mean` of all decoders' probabilities, or the
            `first` decoder.
        inference: build only what `segment` needs; `forward` is then `segment`.
        options: further arguments of the network's constructor.

    Raises:
        ValueError: no such architecture, upsampling or `test_decoder`, or no decoder.
    """

    def __init__(
        self,
        network: str,
        in_channels: int = 1,
        num_classes: int = 2,
        upsamplings: Sequence[str] = ("transposed", "linear"),
        test_decoder: str = "mean",
        inference: bool = False,
        **options,
    ):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"network is one of {', '.join(NETWORKS)}, got {network!r}")
        if test_decoder not in TESTED:
            raise ValueError(f"test_decoder is one of {', '.join(TESTED)}, got {test_decoder!r}")
        if not upsamplings or any(kind not in UPSAMPLINGS for kind in upsamplings):
            raise ValueError(
                f"upsamplings are some of {', '.join(UPSAMPLINGS)}, got {', '.join(upsamplings)!r}"
            )
        self.config = {
            "network": network,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "upsamplings": list(upsamplings),
            "test_decoder": test_decoder,
            "inference": inference,
            **options,
        }
        first_only = inference and test_decoder == "first"
        self.networks = nn.ModuleList(
            network_class(network)(in_channels, num_classes, upsampling=kind, **options)
            for kind in (upsamplings[:1] if first_only else upsamplings)
        )
        for further in self.networks[1:]:  # they decode what the first network encodes
            for name in further.of_encoder:
                delattr(further, name)
        self.dims = self.networks[0].dims
        self.multiples = self.networks[0].multiples

    def checkpoint_activations(self, on: bool = True) -> None:
        """`SegmentationNetwork.checkpoint_activations` of the encoder and of each decoder."""
        for network in self.networks:
            network.checkpoint_activations(on)

    def segment(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes, *S)` of images `(B, in_channels, *S)`: the first decoder's, or
        ln of the mean of the softmax of all decoders.
        """
        first = self.networks[0]
        if self.config["test_decoder"] == "first":
            return first.segment(x)
        features = first._encode(x)
        log_p = []
        for network in self.networks:
            logits = network.heads[0](network.decode(features))
            wide = torch.promote_types(logits.dtype, torch.float32)
            log_p.append(logits.to(wide).log_softmax(1))
        return torch.stack(log_p).logsumexp(0) - math.log(len(log_p))

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """The logits of each decoder; of a network that was built for inference `segment`."""
        if self.config["inference"]:
            return self.segment(x)
        features = self.networks[0]._encode(x)
        logits = []
        for network in self.networks:
            decoded = network.decode(features)
            logits.append(network.run_stage(network.heads[0], decoded))
        return tuple(logits)
