"""The plumbing of every training script: seeds, folder, log, exact resume, checkpoints, signals.

What a reviewer of a paper would never ask about is here; what she would ask about is in the script.

    job = run.Run(args, __file__)              device, seeds, runs/<dataset>/<name>/seed<seed>/
    data = two_stream_loader(args, job.device)
    net = job.to_device(network(data.in_channels, data.num_classes))
    student = job.parallel(net)                to call: in the run's precision, in all processes
    job.resume(net=net, optimizer=optimizer)   names what a checkpoint holds; --resume loads it

    for step, batch in job.steps(data, last):  seeded by (seed, step), so that resuming is exact
        ...
        job.optimize(loss, optimizer)          backward, and the optimizer's step
        job.log(step, loss=loss, lr=lr)        log.txt, metrics.jsonl, TensorBoard
        job.checkpoint(step)                   last.pth now and then, at the end, after a signal

With `--accumulate K` the loop sees each step K times, each time with another part of its batch;
`optimize` adds the gradients up, and the optimizer makes its step with the last part. Work that
belongs to a step once, such as the teacher's update, is done at `batch.first_part` or at
`batch.last_part`.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataloaders.hold_out import SOURCES
from dataloaders.two_stream import Batch, TwoStream
from utils import distributed
from utils.device import Forward, be_deterministic, channels_last, describe, select_device
from utils.environment import environment
from utils.errors import UserError
from utils.training import machine
from utils.training.checkpoints import Checkpoints
from utils.training.folder import RunFolder, open_log
from utils.training.log import Records, forget_after
from utils.training.options import describe as describe_options
from utils.training.pictures import Pictures
from utils.training.signals import Asked
from utils.training.validation import validation_dice


class Run:
    """One training run and its folder.

    Args:
        args: from `options.parse`.
        script: the script's `__file__`; the method's name is taken from it.

    Attributes:
        device: of the networks and batches.
        folder: `runs/<dataset>/<method>_<labelnum>/seed<seed>/`.
        generator: of draws that a step makes once, whatever its parts and processes.
        logger: its lines stand in log.txt and on the terminal.
        options: those of args.json.
        parts: how many parts of a step this process sees.
        precision: `fp32`, `tf32` or `bf16`.
        shares: how many parts a step has in all processes together.
        start: step of the checkpoint that the run goes on from; 0 for a fresh start.

    Raises:
        UserError: the folder already holds a run, and `--resume` is not given or its options
            differ; or the options ask for something that this machine cannot do.
    """

    def __init__(self, args: argparse.Namespace, script: str):
        self.args = args
        if args.deterministic:
            be_deterministic()
        self.device = select_device(args.gpu)
        machine.check(args, self.device)
        distributed.start(self.device)
        self.parts = args.accumulate
        self.shares = args.accumulate * distributed.world_size()
        self.precision = machine.choose_precision(args, self.device)
        self.generator = torch.Generator()
        self.start = 0
        self._forwards: dict[nn.Module, Forward] = {}
        self._reducing: list[nn.Module] = []
        self._pictures = Pictures()
        self._open_folder(Path(script).resolve())
        self.logger = open_log(self.folder)
        self._asked = Asked(self.logger.info)
        self._log_start()
        self._seed(0)
        torch.backends.cudnn.benchmark = not args.deterministic

    def _open_folder(self, script: Path) -> None:
        args = self.args
        method = script.stem.removeprefix("train_")
        name = args.name or f"{method}_{args.labelnum}"
        self.folder = Path(args.runs) / args.dataset / name / f"seed{args.seed}"
        self.options = {key: value for key, value in vars(args).items() if key != "sources"}
        self.options["method"] = method
        self.options["precision"] = self.precision
        self.options["precision_asked"] = args.precision
        if distributed.is_first():
            self._held = RunFolder(self.folder, script, self.options, args.resume)
            self.options = self._held.options
        # all processes wait here until the folder is there
        precisions = distributed.gather(self.precision)
        if len(set(precisions)) > 1:
            raise UserError("the processes' devices choose different precisions: give --precision")

    def _log_start(self) -> None:
        """Begin the log with what the numbers depend on."""
        devices = distributed.gather(describe(self.device))
        if not distributed.is_first():
            return
        record = environment([self.device])
        record["devices"] = devices
        record["processes"] = distributed.world_size()
        self._held.note_environment(record)
        commit = (record["commit"] or "unknown")[:10]
        modified = ", modified" if record["dirty"] else ""
        self.logger.info(f"{self.folder}: commit {commit}{modified}")
        self.logger.info(f"torch {record['torch']}, {self.precision}, {'; '.join(devices)}")
        if self.shares > 1:
            labelled = self.args.labeled_bs // self.shares
            unlabelled = getattr(self.args, "unlabeled_bs", 0) // self.shares
            self.logger.info(
                f"{distributed.world_size()} process(es), {self.parts} part(s) of a step: "
                f"{labelled} labelled and {unlabelled} unlabelled at a time"
            )
        for line in describe_options(self.args):
            self.logger.info(line)

    def _seed(self, step: int) -> None:
        """Make dropout and noise of a step depend only on (seed, step), and on the process where
        there are several, so that no generator's state needs saving.
        """
        key = [self.args.seed, step]
        if step and distributed.rank():  # at step 0 all processes draw the same weights
            key.append(distributed.rank())
        seed = _seed_of(*key)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that use the global generator
        torch.manual_seed(seed)

    # ---- networks

    def to_device(self, network: nn.Module) -> nn.Module:
        """The network on the device. Its weights are laid out channels last, which makes 3-D
        convolutions fast.
        """
        network.checkpoint_activations(bool(self.args.checkpoint_activations))
        if self.args.sync_batchnorm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network.to(self.device, memory_format=channels_last(network.dims))

    def parallel(
        self, network: nn.Module, in_parts: bool = False, fixed_shapes: bool = True
    ) -> nn.Module:
        """A module to call for forward passes: the network in the run's precision, and under
        torchrun with its gradients averaged over all processes.

        Losses belong outside of it, in float32. `in_parts` says that some forward passes use only a
        part of the weights, as `first_only` of `SegmentationNetwork` does. `fixed_shapes` is False
        where shapes depend on values, such as on the number of a class's voxels; such a network is
        not compiled.
        """
        compiled = bool(self.args.compile) and fixed_shapes
        forward = Forward(network, self.device, self.precision, compiled)
        self._forwards[network] = forward
        learns = any(p.requires_grad for p in network.parameters())
        if distributed.world_size() == 1 or not learns:
            return forward
        reducing = distributed.average_gradients(forward, self.device, in_parts)
        self._reducing.append(reducing)
        return reducing

    def optimize(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> bool:
        """Add the gradient of a loss; with the step's last part let the optimizers make their step.

        Returns:
            Whether the optimizers have made their step.
        """
        if self._part == 0:
            for optimizer in optimizers:
                optimizer.zero_grad()
        if self.parts > 1:
            loss = loss / self.parts
        loss.backward()
        last_part = self._part == self.parts - 1
        if last_part:
            for optimizer in optimizers:
                optimizer.step()
        return last_part

    # ---- checkpoints

    def resume(self, test_networks: Sequence[str] = ("net",), **objects: Any) -> int:
        """Name what a checkpoint holds, and with `--resume` load it from `last.pth`.

        Args:
            test_networks: names of the networks whose mean softmax is the prediction.
            objects: anything with `state_dict` and `load_state_dict`; networks must keep their
                `config`.

        Returns:
            The step of the checkpoint, 0 for a fresh start.

        Raises:
            UserError: the checkpoint is damaged, or does not fit the objects.
        """
        self._checkpoints = Checkpoints(self.folder, self.options, objects, test_networks)
        shown = objects[self._checkpoints.test_networks[0]]
        self._pictures.watch(self._forwards.get(shown, shown))
        found = self._checkpoints.load()
        self.start = found or 0
        if found is not None:
            self.logger.info(f"resumed at step {self.start}")
        elif self.args.resume:
            self.logger.info("nothing to resume yet: starting at step 0")
        if len(set(distributed.gather(self.start))) > 1:
            raise UserError(
                f"{self.folder}: the processes do not see one folder; give --runs on a disk that "
                "all share"
            )
        if distributed.is_first():
            forget_after(self.folder / "metrics.jsonl", self.start)
        return self.start

    def checkpoint(self, step: int) -> None:
        """Save when it is time, when the run is complete, or after a signal, which then ends the
        process.

        All networks are also kept as `step_<n>.pth` every `--keep_every` steps, and as `best.pth`
        after the best validation so far. The first process writes; the others wait where they must.
        """
        if self._part < self.parts - 1:
            return
        distributed.average_buffers(self._checkpoints.networks())
        minutes = (time.monotonic() - self._checkpoints.saved_at) / 60
        due = distributed.is_first() and minutes >= self.args.save_minutes
        asked, due = distributed.largest(self._asked.number, due)
        complete = step == self._last
        keep = self.args.keep_every and step % self.args.keep_every == 0
        validate = self.data.validation and (step % self.args.val_every == 0 or complete)
        if keep or validate or due or asked or complete:
            self._records.settle()
            # a process whose number was not finite does not come here: nothing is saved
            distributed.gather(None)
        if keep and distributed.is_first():
            self._checkpoints.keep(step, f"step_{step}.pth")
        if validate:
            self._validate(step)
        if due or complete:
            self._save(step)
        self._leave(step, asked)
        self.leave_if_asked(step)  # a signal may have come meanwhile

    def leave_if_asked(self, step: int) -> None:
        """After a signal: save and end the process. For long work inside a step, while all is as
        `step` left it.

        Under torchrun nothing happens before the step is over: the processes leave together.
        """
        if distributed.world_size() == 1:
            self._leave(step, self._asked.number)

    def _leave(self, step: int, asked: int) -> None:
        if not asked:
            return
        self._save(step)
        distributed.gather(None)  # torchrun ends all processes when the first one leaves
        name = signal.Signals(asked).name
        self.logger.info(f"{name}: saved step {step}, --resume goes on from it")
        self._release()
        sys.exit(128 + asked)

    def _save(self, step: int) -> None:
        if step == self._checkpoints.saved and step:
            return
        if distributed.is_first():
            self._records.settle()
            self._checkpoints.save(step)
        self._checkpoints.saved = step
        self._checkpoints.saved_at = time.monotonic()

    def _validate(self, step: int) -> None:
        """Score the networks that are tested on the cases kept aside; of equal steps the first
        stays the best.
        """
        began = time.monotonic()
        classes = validation_dice(
            self._checkpoints.tested(),
            self.data.validation.cases,
            self.args.patch,
            self.data.num_classes,
            device=self.device,
            precision=self.precision,
        )
        dice = sum(classes) / len(classes)
        best = self._checkpoints.best
        if best is None or dice > best["dice"]:
            best = {"step": step, "dice": dice}
            self._checkpoints.best = best
            if distributed.is_first():
                self._checkpoints.keep(step, "best.pth")
        if not distributed.is_first():
            return
        record = {"val/dice": dice}
        if len(classes) > 1:
            names = self.data.description["class_names"]
            for name, value in zip(names, classes, strict=True):
                record[f"val/dice_{name}"] = value
        self._records.write(step, record)
        self.logger.info(
            f"step {step}: validation Dice {100 * dice:.2f}, best {100 * best['dice']:.2f} at step "
            f"{best['step']}; {time.monotonic() - began:.1f} s"
        )

    # ---- the loop

    def steps(self, data: TwoStream, last: int) -> Iterator[tuple[int, Batch]]:
        """Yield `(step, batch)` up to step `last`, each with its own seed, under a progress bar.

        Raises:
            UserError: the run was begun on other cases.
        """
        self.data = data
        self._last = last
        self._checkpoints.begin(data, last)
        if self.start >= last:
            self.logger.info(f"complete at step {self.start} of {last}: nothing to do")
            self._release()
            return
        self._records = Records(
            self.folder,
            self.logger.info,
            self.args.log_every,
            self.start,
            last,
            epoch=data.epoch,
            saved=lambda: self._checkpoints.saved,
        )
        self._log_data()
        try:
            with self._asked.listening():
                for step in range(self.start + 1, last + 1):
                    self._records.begin()
                    self._seed(step)
                    for part in range(self.parts):
                        self._begin_part(step, part)
                        more = part < self.parts - 1
                        with distributed.without_reduction(self._reducing, more):
                            yield step, self._batch
                    self._records.end()
                self._records.complete()
        finally:
            self._records.close()
            self._release()

    def _begin_part(self, step: int, part: int) -> None:
        """Load a part of a step's batch, and make ready for it."""
        self._part = part
        with self._records.loading():
            self._batch = self.data.batch(step, part, self.parts)
        due = part == 0 and step % self.args.picture_every == 0
        if due and distributed.is_first():
            self._pictures.ask(step, self._batch, self._records.board)
        else:
            self._pictures.cancel()
        self.generator.manual_seed(_seed_of(self.args.seed, step, 0, 1))

    def _log_data(self) -> None:
        self.logger.info(self.data.summary)
        held = self.data.validation
        if held and not self.start:
            names = ", ".join(held.names())
            self.logger.info(f"validation on {SOURCES[held.source]}: {names}")

    def _release(self) -> None:
        """Let another process have the folder."""
        if distributed.is_first():
            self._held.close()

    def log(self, step: int, **values: float | Tensor) -> None:
        """Record numbers or 0-d tensors every `--log_every` steps, and check at every step that
        they are finite.

        Tags are the field's: `loss` and `loss_…` under `loss/`, `lr` as it is, everything else
        under `info/`. The mean over a step's parts and processes is recorded.

        Raises:
            UserError: a value of this step, or on a GPU of one shortly before, is NaN or infinite;
                names the step, all values and the cases of the batch.
        """
        last_part = self._part == self.parts - 1
        self._records.add(step, values, self._batch.names, last_part)


def _seed_of(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
