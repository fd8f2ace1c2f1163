"""What a training script's loop gives to its networks and to its loss, step by step."""

import inspect
from dataclasses import dataclass, field

import pytest
import torch

from dataloaders.two_stream import Batch
from utils.training import run


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        name: of the network, as the checkpoint has it.
        given: the network's arguments.
        answer: its output.
        training: whether the network was in training mode.
        gradient: whether autograd was on.
        weights: all of the network's parameters in one vector, before the pass.
    """

    name: str
    given: tuple
    answer: torch.Tensor
    training: bool
    gradient: bool
    weights: torch.Tensor


@dataclass
class Part:
    """A step, or with --accumulate a part of one.

    Attributes:
        batch: of the loader.
        passes: in their order.
        objective: the arguments of the script's `objective` by name.
    """

    batch: Batch
    passes: list[Pass] = field(default_factory=list)
    objective: dict = field(default_factory=dict)

    def of(self, name):
        """The passes of one network."""
        return [heard for heard in self.passes if heard.name == name]


def listen(script, root, runs, *options, answers=None):
    """Run a script's `main`.

    Args:
        script: the module.
        root, runs: folders.
        options: of the command line.
        answers: network name to a function of its input that stands in for its output.

    Returns:
        The list of its `Part`s.
    """
    parts, answers = [], answers or {}
    steps, resume, objective = run.Run.steps, run.Run.resume, script.objective

    def listening(name):
        def hook(net, given, answer):
            if name in answers:
                answer = answers[name](*given)
            weights = torch.cat([p.detach().flatten() for p in net.parameters()])
            state = (net.training, torch.is_grad_enabled(), weights)
            parts[-1].passes.append(Pass(name, given, answer, *state))
            return answer

        return hook

    def heard_steps(job, data, last):
        for step, batch in steps(job, data, last):
            parts.append(Part(batch))
            yield step, batch

    def heard_resume(job, *names, **objects):
        for name, thing in objects.items():
            if isinstance(thing, torch.nn.Module):
                thing.register_forward_hook(listening(name))
        return resume(job, *names, **objects)

    def heard_objective(*args, **kwargs):
        parts[-1].objective = inspect.signature(objective).bind(*args, **kwargs).arguments
        return objective(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(run.Run, "steps", heard_steps)
        patches.setattr(run.Run, "resume", heard_resume)
        patches.setattr(script, "objective", heard_objective)
        script.main([*options, "--root", str(root), "--runs", str(runs)])
    return parts


def noise(given, image):
    """What an input has more than the image: insist on clamp(N(0, 0.1²), ±0.2) of each voxel."""
    difference = given - image
    assert difference.abs().max() <= 0.2 + 1e-6
    assert 0.09 < difference.std() < 0.1  # a little of 0.1 is cut off
    assert difference.mean().abs() < 0.005
    return difference
