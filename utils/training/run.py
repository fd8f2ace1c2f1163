"""The plumbing of every training script: seeds, folder, log, exact resume, checkpoints, signals.

What a reviewer of a paper would never ask about stands here; what she would ask about stands in the
script.

    job = run.Run(args, __file__)                        devices, seeds, runs/<dataset>/<method>_<labelnum>/seed<seed>/
    student = job.parallel(net)                          what to call, in the run's precision, on one device or many
    job.resume(net=net, optimizer=optimizer)             what a checkpoint holds; loads it with --resume
    for step, batch in job.steps(data, last):            seeded by (seed, step): a resumed run repeats every bit
        ...
        job.optimize(loss, optimizer)                    backward, and the optimizer's step
        job.log(step, loss=loss, lr=lr)                  log.txt, metrics.jsonl, TensorBoard; stops if not finite
        job.checkpoint(step)                             last.pth now and then, at the end, and on SIGTERM or SIGINT

With `--accumulate K` the loop sees a step K times, each time with a part of its batch
(`batch.part`, from 0); what belongs to the step alone is done where `optimize` answers True, or at
part 0.
"""

import contextlib
import fcntl
import inspect
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.hold_out import SOURCES
from networks import network_class
from utils import distributed
from utils.checkpoint import load_checkpoint, load_state
from utils.command import SIGNALS
from utils.device import (
    Forward,
    be_deterministic,
    bf16_agrees,
    channels_last,
    describe,
    resolve_precision,
    select_devices,
    warn_once,
)
from utils.environment import environment
from utils.errors import UserError
from utils.files import write_atomically
from utils.training.log import Records, forget_after
from utils.training.options import MAY_DIFFER, first_difference
from utils.training.options import describe as describe_options
from utils.training.validation import validation_dice

STREAMS = {"labeled_bs": "labelled", "unlabeled_bs": "unlabelled"}


# ------------------------------------------------------------------------------------------------------------ records


# ---------------------------------------------------------------------------------------------------------------- run


class Run:
    """One training run and its folder.

    Args:
        args: from `parse`.
        script: the script's `__file__`; its name gives the method's.

    Attributes:
        device: of the networks and batches.
        folder: `runs/<dataset>/<method>_<labelnum>/seed<seed>/`.
        precision: `fp32`, `tf32` or `bf16`.
        parts: how many parts a process sees of a step.
        shares: how many there are of a step, over all processes.

    Raises:
        UserError: the folder already holds a run, and `--resume` is not given or its options
            differ; or a step's crops cannot be shared out evenly.
    """

    def __init__(self, args, script):
        self.args = args
        if args.deterministic:
            be_deterministic()
        self.devices = select_devices(args.gpu)
        self.device = self.devices[0]
        self._check(args)
        distributed.start(self.device)
        self.parts, self.shares = args.accumulate, args.accumulate * distributed.world_size()
        self.precision = resolve_precision(args.precision, self.device)
        bottom = network_class(args.net).bottom
        for level in range(max(bottom).bit_length() - 1, 0, -1):
            extents = tuple(
                -(-extent // min(2**level, most))
                for extent, most in zip(args.patch, bottom, strict=True)
            )
            if self.precision == "bf16" and not bf16_agrees(self.device, extents):
                warn_once(
                    f"bf16 convolutions over {extents} voxels go wrong on this device: training in "
                    "fp32"
                )
                self.precision = resolve_precision("fp32", self.device)
        self.start, self._signal, self._picture_due, self._best = 0, 0, False, None
        self._forwards, self._reducing = {}, []
        self.generator = (
            torch.Generator()
        )  # of draws that a step makes once, whatever its parts and processes
        script = Path(script).resolve()
        method = script.stem.removeprefix("train_")
        self.folder = (
            Path(args.runs)
            / args.dataset
            / (args.name or f"{method}_{args.labelnum}")
            / f"seed{args.seed}"
        )
        self.options = {key: value for key, value in vars(args).items() if key != "sources"}
        self.options |= {
            "method": method,
            "precision": self.precision,
            "precision_asked": args.precision,
        }
        if distributed.is_first():
            self._open_folder(script)
        if (
            len(set(distributed.gather(self.precision))) > 1
        ):  # all wait here until the folder is there
            raise UserError("the processes' devices choose different precisions: give --precision")
        self._open_log()
        self._seed(0)
        torch.backends.cudnn.benchmark = not args.deterministic

    def _check(self, args):
        """Raise `UserError` where the options ask for what these devices cannot do."""
        if len(self.devices) > 1 and (args.compile != "0" or args.accumulate > 1):
            name = "--compile" if args.compile != "0" else "--accumulate"
            raise UserError(
                f"{name} with --gpu {args.gpu}: start a process a GPU, torchrun --nproc_per_node=…"
            )
        if args.compile == "graphs" and self.device.type != "cuda":
            raise UserError(
                "--compile graphs: CUDA graphs need a GPU; --compile 1 compiles for the CPU"
            )
        if (
            args.compile == "graphs" and args.accumulate > 1
        ):  # the next part's graph takes a gradient's memory
            raise UserError(
                "--compile graphs keeps no gradient between the parts of --accumulate: take "
                "--compile 1"
            )
        if args.compile != "0" and args.sync_batchnorm:
            raise UserError(
                "--sync_batchnorm 1: torch.compile does not take it, leave out --compile"
            )
        if args.deterministic and self.device.type == "cuda" and args.net in ("unet3d", "resnet18"):
            raise UserError(
                f"--deterministic 1: {args.net}'s 3-D max pooling has no deterministic gradient on "
                "a GPU"
            )
        if args.sync_batchnorm and (self.device.type != "cuda" or not distributed.launched()):
            raise UserError("--sync_batchnorm 1: it is for several GPUs, started by torchrun")
        compiler = os.environ.get("CXX", "g++")
        if args.compile != "0" and self.device.type == "cpu" and not shutil.which(compiler):
            raise UserError(
                f"--compile {args.compile}: no C++ compiler {compiler} here; name another in CXX"
            )
        shares = args.accumulate * distributed.started()
        for name in ("labeled_bs", "unlabeled_bs"):
            if (count := getattr(args, name, 0)) % shares:
                raise UserError(
                    f"--{name} {count} is a step's, for {shares} equal shares: take a multiple of "
                    f"{shares}"
                )

    def _open_folder(self, script):
        last = self.folder / "last.pth"
        if last.exists() and not self.args.resume:
            raise UserError(
                f"{self.folder} already holds a run: --resume goes on with it, --name starts "
                "another beside it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made ({error.strerror})") from None
        self._lock()
        for leftover in self.folder.glob(".*.pth.*"):  # of a save that was killed
            leftover.unlink()
        self._environment = []
        if last.exists():
            before = self._read_json("args.json")
            self._compare_options(before)
            self.options["precision_asked"] = before.get("precision_asked", self.args.precision)
            self._environment = self._read_json("environment.json")
        else:
            text = json.dumps(self.options, indent=1) + "\n"
            write_atomically(self.folder / "args.json", lambda path: path.write_text(text))
            shutil.copy(script, self.folder / script.name)
            (self.folder / "metrics.jsonl").write_text("")

    def _open_log(self):
        """Begin the log of this process, of which the first one's is read, with what the numbers
        depend on.
        """
        self.logger = logging.getLogger(f"run.{self.folder}")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.handlers = [logging.NullHandler()]
        devices = [
            name
            for devices in distributed.gather([describe(d) for d in self.devices])
            for name in devices
        ]
        if not distributed.is_first():
            return
        self.logger.handlers = [
            logging.FileHandler(self.folder / "log.txt", encoding="utf-8"),
            _BarHandler(),
        ]
        for handler in self.logger.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        now = environment(self.devices) | {
            "devices": devices,
            "processes": distributed.world_size(),
        }
        self._environment.append(now)
        text = json.dumps(self._environment, indent=1) + "\n"
        write_atomically(self.folder / "environment.json", lambda path: path.write_text(text))
        self.logger.info(
            f"{self.folder}: commit "
            f"{(now['commit'] or 'unknown')[:10]}{', modified' if now['dirty'] else ''}"
        )
        self.logger.info(f"torch {now['torch']}, {self.precision}, {'; '.join(now['devices'])}")
        if self.shares > 1:
            of = distributed.world_size()
            each = [
                f"{getattr(self.args, name, 0) // self.shares} {kind}"
                for name, kind in STREAMS.items()
            ]
            self.logger.info(
                f"{of} process(es), {self.parts} part(s) of a step: {' and '.join(each)} at a time"
            )
        for line in describe_options(self.args):
            self.logger.info(line)

    def _lock(self):
        """Hold the folder until the process ends: two runs in one folder would overwrite each
        other.
        """
        self._held = open(self.folder / ".lock", "w")  # noqa: SIM115 - closed, and so released, with the run
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.folder}: another process trains here; wait for it, or --name another"
            ) from None

    def _read_json(self, name):
        try:
            return json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{self.folder / name}: missing or damaged, so this run cannot be resumed"
            ) from None

    def _compare_options(self, before):
        """Insist on the options that the run was started with; options newer than the run keep
        their defaults.
        """
        newer = self.options.keys() - before.keys() - MAY_DIFFER
        if given := [key for key in sorted(newer) if self.args.sources.get(key) == "command line"]:
            raise UserError(
                f"{self.folder} was started before --{given[0]} existed: leave it out, or --name "
                "another"
            )
        key = first_difference(
            before, self.options, MAY_DIFFER | {"precision_asked"}
        )  # what came of it counts
        if key:
            old, new = before[key], self.options[key]
            raise UserError(
                f"{self.folder} was started with {key} {old}, not {new}: resume it so, or --name "
                "another"
            )

    def _seed(self, step):
        """Dropout and noise of a step depend on (seed, step) alone, and on the process where there
        are several, so no generator's state needs saving."""
        own = (
            (distributed.rank(),) if step and distributed.rank() else ()
        )  # all begin with the same weights
        seed = _seed_of(self.args.seed, step, *own)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from the global generator
        torch.manual_seed(seed)

    # ---- networks

    def to_device(self, network):
        """The network on the device, its weights laid out channels last, which is what makes 3-D
        convolutions fast.
        """
        network.checkpoint_activations(bool(self.args.checkpoint_activations))
        if self.args.sync_batchnorm:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network.to(self.device, memory_format=channels_last(network.dims))

    def parallel(self, network):
        """What to call for a forward pass: the network in the run's precision, its copies on all
        GPUs of `--gpu 0,1`, under torchrun with its gradients averaged over all processes.

        Losses belong outside it, in float32.
        """
        forward = Forward(network, self.device, self.precision, self.args.compile)
        self._forwards[network] = forward
        if len(self.devices) > 1:
            return torch.nn.DataParallel(forward, self.devices)
        if distributed.world_size() == 1 or not any(p.requires_grad for p in network.parameters()):
            return forward
        # of weights that are 1 wide, whose layout is contiguous and channels last at once: nothing
        # is lost
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        place = [self.device] if self.device.type == "cuda" else None
        ddp = torch.nn.parallel.DistributedDataParallel
        # what `average_buffers` does; torch has renamed it
        names = ("forward_sync_buffers", "broadcast_buffers")
        own = next({name: False} for name in names if name in inspect.signature(ddp).parameters)
        reducing = ddp(forward, place, **own)
        self._reducing.append(reducing)
        return reducing

    def optimize(self, loss, *optimizers):
        """The gradient of a loss, and with the step's last part the step of the optimizers.

        Returns:
            Whether the optimizers have made their step.
        """
        if self._part == 0:
            for optimizer in optimizers:
                optimizer.zero_grad()
        (loss / self.parts if self.parts > 1 else loss).backward()
        final = self._part == self.parts - 1
        if final:
            for optimizer in optimizers:
                optimizer.step()
        return final

    # ---- checkpoints

    def resume(self, test_networks=("net",), **objects):
        """Name what a checkpoint holds, and with `--resume` load it from `last.pth`.

        Args:
            test_networks: names of the networks whose mean softmax is the prediction.
            objects: anything with `state_dict` and `load_state_dict`; networks must keep their
                `config`.

        Returns:
            The step of the checkpoint, 0 for a fresh start.
        """
        self._objects, self._test_networks = objects, list(test_networks)
        self._watch(objects[self._test_networks[0]])
        path = self.folder / "last.pth"
        if path.exists():
            state = load_checkpoint(path)
            missing = [name for name in (*objects, "step", "data") if name not in state]
            if missing:
                raise UserError(
                    f"{path}: no {missing[0]} in this checkpoint; it is of another script or "
                    "version"
                )
            for name, target in objects.items():
                load_state(path, name, target, state[name])
            self.start, self._fingerprint, self._best = (
                state["step"],
                state["data"],
                state.get("best"),
            )
            self.logger.info(f"resumed at step {self.start}")
        elif self.args.resume:
            self.logger.info("nothing to resume yet: starting at step 0")
        self._saved_at = time.monotonic()
        if len(set(distributed.gather(self.start))) > 1:
            raise UserError(
                f"{self.folder}: the processes do not see one folder; give --runs on a disk that "
                "all share"
            )
        if distributed.is_first():
            forget_after(self.folder / "metrics.jsonl", self.start)
        return self.start

    def checkpoint(self, step):
        """Save when it is time, when the run is complete, or when a signal asks for it, which then
        ends the process.

        Every `--keep_every` steps the networks that are tested are kept as `step_<n>.pth` besides,
        and after the best of the validations so far as `best.pth`. The first process writes, all
        others wait where they must.
        """
        if self._part < self.parts - 1:
            return
        distributed.average_buffers(
            target for target in self._objects.values() if isinstance(target, torch.nn.Module)
        )
        due = (
            distributed.is_first()
            and time.monotonic() - self._saved_at >= 60 * self.args.save_minutes
        )
        asked, due = distributed.largest(self._signal, due)
        keep = self.args.keep_every and step % self.args.keep_every == 0
        validate = self.data.validation and (step % self.args.val_every == 0 or step == self.last)
        if keep or validate or due or asked or step == self.last:
            self._records.settle()
            distributed.gather(
                None
            )  # where a number was not finite, its process does not come here: nothing is saved
        if keep:
            self._keep(step, f"step_{step}.pth")
        if validate:
            self._validate(step)
        if due or step == self.last:
            self._save(step)
        self._leave(step, asked)
        self.leave_if_asked(step)  # since they have told each other

    def leave_if_asked(self, step):
        """After a signal: save and end the process, for long work inside a step, while all is as
        `step` left it. Under torchrun not before the step is over: the processes leave together."""
        if distributed.world_size() == 1:
            self._leave(step, self._signal)

    def _leave(self, step, asked):
        if asked:
            self._save(step)
            distributed.gather(None)  # torchrun ends all when the first one leaves
            self.logger.info(
                f"{signal.Signals(asked).name}: saved step {step}, --resume goes on from it"
            )
            self._release()
            sys.exit(128 + asked)

    def _keep(self, step, name):
        if not distributed.is_first():
            return
        kept = self._state(step, self._test_networks)
        write_atomically(self.folder / name, lambda path: torch.save(kept, path))

    def _validate(self, step):
        """Score the networks that are tested on the cases kept aside; the first of equal steps
        stays the best.
        """
        began, networks = time.monotonic(), [self._objects[name] for name in self._test_networks]
        where = {"device": self.device, "precision": self.precision}
        held, patch, num_classes = (
            self.data.validation.cases,
            self.args.patch,
            self.data.num_classes,
        )
        classes = validation_dice(networks, held, patch, num_classes, **where)
        dice = sum(classes) / len(classes)
        if self._best is None or dice > self._best["dice"]:
            self._best = {"step": step, "dice": dice}
            self._keep(step, "best.pth")
        names = self.data.description["class_names"]
        record = {"val/dice": dice}
        if len(classes) > 1:
            record |= {
                f"val/dice_{name}": value for name, value in zip(names, classes, strict=True)
            }
        if not distributed.is_first():
            return
        self._records.write(step, record)
        best, seconds = self._best, time.monotonic() - began
        self.logger.info(
            f"step {step}: validation Dice {100 * dice:.2f}, best {100 * best['dice']:.2f} at step "
            f"{best['step']}; "
            f"{seconds:.1f} s"
        )

    def _save(self, step):
        if step == self._records.saved and step:
            return
        if distributed.is_first():
            self._records.settle()
            state = self._state(step, self._objects)
            write_atomically(self.folder / "last.pth", lambda path: torch.save(state, path))
        self._records.saved, self._saved_at = step, time.monotonic()

    def _state(self, step, names):
        """A checkpoint's dict, of the objects of these names."""
        objects = {name: self._objects[name] for name in names}
        for name, net in objects.items():
            if isinstance(net, torch.nn.Module) and not all(
                p.isfinite().all() for p in net.parameters()
            ):
                last = f"last checkpoint: step {self._records.saved}"
                raise UserError(f"step {step}: {name} is not finite any more; {last}")
        networks = {
            name: {"class": f"{type(net).__module__}.{type(net).__name__}", "kwargs": net.config}
            for name, net in objects.items()
            if hasattr(net, "config")
        }
        state = {
            "step": step,
            "last": self.last,
            "data": self.data.fingerprint(),
            "args": self.options,
            "dataset": self.data.description,
            "networks": networks,
            "test_networks": self._test_networks,
        }
        if self.data.validation:
            chosen = {
                "from": SOURCES[self.data.validation.source],
                "cases": self.data.validation.names(),
            }
            state |= {"validation": chosen, "best": self._best}
        return state | {name: target.state_dict() for name, target in objects.items()}

    # ---- the loop

    def steps(self, data, last):
        """Yield `(step, batch)` up to step `last`, each with its own seed, under a progress bar."""
        self.data, self.last = data, last
        if self.start and self._fingerprint != data.fingerprint():
            raise UserError(
                f"{self.folder} was trained on other cases than these: check --root and its lists"
            )
        if self.start >= last:
            self.logger.info(f"complete at step {self.start} of {last}: nothing to do")
            self._release()
            return
        self._records = Records(
            self.folder, self.logger.info, self.args.log_every, self.start, last, data.epoch
        )
        self.logger.info(data.summary)
        if data.validation and not self.start:
            names = ", ".join(data.validation.names())
            self.logger.info(f"validation on {SOURCES[data.validation.source]}: {names}")
        handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            for step in range(self.start + 1, last + 1):
                self._step = step
                self._records.begin()
                self._seed(step)
                for part in range(self.parts):
                    self._part = part
                    if self.args.compile == "graphs":
                        # what the last graphs gave may be overwritten
                        torch.compiler.cudagraph_mark_step_begin()
                    with self._records.loading():
                        self._batch = data.batch(step, self._part, self.parts)
                    self._picture_due = (
                        not part and step % self.args.picture_every == 0 and distributed.is_first()
                    )
                    self.generator.manual_seed(_seed_of(self.args.seed, step, 0, 1))
                    with distributed.without_reduction(self._reducing, self._part < self.parts - 1):
                        yield step, self._batch
                self._records.end()
            self._records.complete()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._records.close()
            self._release()

    def _release(self):
        """Let another process have the folder."""
        if distributed.is_first():
            self._held.close()

    def _ask(self, number, _frame):
        if (
            self._signal and distributed.launched()
        ):  # torchrun passes on what its processes may have been sent too
            return
        if self._signal:  # asked twice: at once
            sys.exit(128 + number)
        self._signal = number
        self.logger.info(f"{signal.Signals(number).name}: finishing this step, then saving")

    # ---- logging

    def log(self, step, **values):
        """Record numbers or 0-d tensors every `--log_every` steps, and see of every step that they
        are finite.

        Tags are the field's: `loss` and `loss_…` under `loss/`, `lr` as it is, everything else
        under `info/`. Recorded is the mean over a step's parts and processes.

        Raises:
            UserError: a value is NaN or infinite, of this step or, on a GPU, of one shortly before;
                names the step, all values and the cases of the batch.
        """
        self._records.add(step, values, self._batch.names, self._part == self.parts - 1)

    def _watch(self, network):
        """Show the prediction for the batch's first crop in TensorBoard now and then, without a
        line in the script.
        """

        def hook(module, inputs, output):
            # neither a teacher's look, nor windows of a volume, nor another GPU's share of the
            # batch
            learning = module.training and torch.is_grad_enabled()
            if self._picture_due and learning and inputs[0].device == self.device:
                self._picture_due = False
                logits = output
                while not torch.is_tensor(logits):  # of several heads or networks the first
                    logits = logits[0]
                label, classes = self._batch.label[0], logits.shape[1]
                if isinstance(
                    output, list
                ):  # binary networks, of which the first has the first class
                    label = label == 1
                pictures = {
                    "train/Image": inputs[0][0, 0],
                    "train/Predicted_label": logits[0].detach().argmax(0) / (classes - 1),
                }
                if torch.equal(
                    inputs[0][0], self._batch.image[0]
                ):  # not where the script has mixed crops
                    pictures["train/Groundtruth_label"] = label / (classes - 1)
                self._records.board.images(self._step, pictures)

        self._forwards.get(network, network).register_forward_hook(hook)


def _seed_of(*key):
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


class _BarHandler(logging.Handler):
    """Log lines above the progress bar instead of through it."""

    def emit(self, record):
        with contextlib.suppress(
            OSError, ValueError
        ):  # nobody reads stderr any more: no reason to stop training
            tqdm.write(self.format(record), file=sys.stderr)
