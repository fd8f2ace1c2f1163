"""--compile: the networks are compiled whole, and train as they do without it."""

import functools
import json

import pytest
import torch
import train_cml
import train_coranet
import train_entropy
import train_mcnet
import train_ssnet
import train_ugmcl
import train_unimatch
from small import BOTH, LA, SHORT

from networks.base import CONV, stage
from utils.device import Forward
from utils.errors import UserError
from utils.training import options, run

SMALL = [*LA, *BOTH, "--log_every", "1"]
METHODS = {
    "ugmcl": (train_ugmcl, SHORT["train_ugmcl"]),
    "cml": (train_cml, SHORT["train_cml"]),
    "cml, released": (train_cml, [*SHORT["train_cml"], "--preset", "released"]),
    "ssnet": (train_ssnet, SHORT["train_ssnet"]),
    "mcnet": (train_mcnet, SHORT["train_mcnet"]),
    "entropy": (
        train_entropy,
        [*SHORT["train_entropy"], *"--adversarial 1 --patch 32 32 32".split()],
    ),
    "unimatch": (train_unimatch, SHORT["train_unimatch"]),
    "coranet": (train_coranet, [*SHORT["train_coranet"], "--normalization", "batchnorm"]),
}


@pytest.mark.parametrize(("script", "flags"), METHODS.values(), ids=METHODS)
def test_networks_are_one_graph_and_train_the_same(script, flags, tiny_la, tmp_path, monkeypatch):
    """Traced as for kernels, without making them, which takes a minute a network; a graph that
    breaks raises.
    """
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiled)
    losses = {}
    for compile in ("0", "1"):
        torch._dynamo.reset()
        where = ["--root", str(tiny_la), "--runs", str(tmp_path / compile), "--compile", compile]
        script.main([*SMALL, *flags, *where])
        assert bool(graphs) == (compile == "1")
        (file,) = tmp_path.glob(f"{compile}/*/*/*/metrics.jsonl")
        losses[compile] = [json.loads(line)["loss/loss"] for line in file.read_text().splitlines()]
    assert len(losses["0"]) > 1
    assert losses["1"] == pytest.approx(losses["0"], rel=1e-6)


def test_compiled_kernels_compute_the_same():
    torch.manual_seed(0)
    network = torch.nn.Sequential(stage(2, 1, 1, 4, "batchnorm"), CONV[2](4, 2, 1))
    x, results = torch.randn(2, 1, 8, 8), []
    for compiled in (False, True):
        torch._dynamo.reset()
        forward = Forward(network, torch.device("cpu"), "fp32", compiled)
        network.zero_grad()
        logits = forward(x)
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in network.parameters())])
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-5)


def test_options_that_do_not_fit_the_machine_are_refused(tmp_path):
    args = options.parse(
        options.parser("doc", "train_x.py"),
        argv=["--gpu", "-1", "--runs", str(tmp_path), "--sync_batchnorm", "1"],
    )
    with pytest.raises(UserError, match="--sync_batchnorm"):
        run.Run(args, __file__)
    assert not list(tmp_path.iterdir())


def test_a_compiled_network_has_no_batch_norm_over_gpus():
    with pytest.raises(UserError, match=r"--sync_batchnorm.*--compile"):
        options.parse(
            options.parser("doc", "train_x.py"), argv=["--compile", "1", "--sync_batchnorm", "1"]
        )
