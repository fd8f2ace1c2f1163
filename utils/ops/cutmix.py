"""CutMix: pastes one box of a sample into another sample, image and label in one pass."""

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad

from utils.ops import _checks, _library


def splice(a: torch.Tensor, b: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """`b` inside the box and `a` elsewhere.

    Args:
        a, b: batches `(B, ..., *S)` of one shape, device and dtype, which may be any. `S` are the
            last D axes, D = 1, 2 or 3. All axes between B and S, such as channels, share the
            sample's box.
        box: int64, in voxels: the first corner and the last corner, which is excluded. `(2, D)`:
            the same box for all samples. `(B, 2, D)`: one box a sample. The part outside the volume
            is cut off; an empty box returns `a`. The box is on the device of `a` and `b`, or on the
            CPU, from where it is copied without blocking. For capture in a CUDA graph it must be on
            their device.

    Returns:
        A new contiguous tensor like `a`. Its gradient goes to `b` inside the box and to `a`
        elsewhere.

    Raises:
        TypeError: the pair has two dtypes, or the box is not an int64 tensor.
        ValueError: shapes or devices do not fit, or a volume has 2^31 voxels or more.
    """
    return _run(_splice, (a, b), box)


def cutmix(
    image_a: torch.Tensor,
    image_b: torch.Tensor,
    label_a: torch.Tensor,
    label_b: torch.Tensor,
    box: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of `b` inside the box and of `a` elsewhere: `splice` of both pairs at once.

    CutMix (Yun et al., ICCV 2019) with one label a voxel. For further labels call `splice` with
    the same box.

    Args:
        image_a, image_b: batches `(B, C, *S)`, of one shape and dtype.
        label_a, label_b: `(B, *S)` or `(B, ..., *S)`, of one shape and dtype.
        box: as for `splice`.

    Returns:
        image, label: new tensors. A tensor of a floating dtype has a gradient, as in `splice`.

    Raises:
        TypeError, ValueError: as in `splice`; or image and label differ in B or S.
    """
    return _run(_cutmix, (image_a, image_b, label_a, label_b), box)


def random_box(
    shape: Sequence[int],
    ratio: float | Sequence[float],
    generator: torch.Generator | None = None,
    count: int | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """A random box that covers `ratio` of each axis, rounded down to voxels.

    Its place is drawn uniformly from all places where it fits. If a side rounds down to 0 voxels,
    the box is empty, and `splice` with it returns `a`.

    Args:
        shape: the volume's extents `S`, 1, 2 or 3 numbers, in voxels.
        ratio: in (0, 1], one number or one an axis.
        generator: draws on its own device; torch's default generator on the CPU if not given.
        count: the number of boxes; None for one box without a batch axis.
        device: where the result goes.

    Returns:
        int64 `(2, D)` or `(count, 2, D)`, as `splice` takes it.

    Raises:
        TypeError: extents or count are no integers, or the ratio is no number.
        ValueError: other than 1, 2 or 3 extents of at least 0, a ratio outside (0, 1] or not one
            number an axis, or a count below 1.
    """
    shape = _checks.integers(shape, "shape")
    if not 1 <= len(shape) <= 3 or min(shape) < 0:
        raise ValueError(f"expected 1, 2 or 3 extents of at least 0, got {tuple(shape)}")
    one_an_axis = isinstance(ratio, list | tuple) or getattr(ratio, "ndim", 0) > 0
    ratios = _checks.numbers(ratio if one_an_axis else [ratio] * len(shape), "a ratio in (0, 1]")
    if len(ratios) != len(shape) or not all(0 < r <= 1 for r in ratios):
        raise ValueError(f"expected a ratio in (0, 1] for each axis of {tuple(shape)}, got {ratio}")
    if count is not None and _checks.integer(count, "count") < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    drawn_on = torch.device("cpu") if generator is None else generator.device
    boxes = torch.empty(
        (1 if count is None else count, 2, len(shape)), dtype=torch.int64, device=drawn_on
    )
    for axis, (extent, r) in enumerate(zip(shape, ratios, strict=True)):
        inside = int(round(r * extent, 6))  # 0.29 · 100 is slightly less than 29
        boxes[:, 0, axis] = torch.randint(
            extent - inside + 1, (len(boxes),), generator=generator, device=drawn_on
        )
        boxes[:, 1, axis] = boxes[:, 0, axis] + inside
    boxes = boxes[0] if count is None else boxes
    # Copies to the CPU block, because the host may read the result at once.
    return boxes.to(device, non_blocking=drawn_on.type == "cpu")


def splice_reference(a: torch.Tensor, b: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """`splice` by its definition: one slice assignment a sample."""
    _check([a, b], box)
    out = a.clone(memory_format=torch.contiguous_format)
    boxes = box if box.ndim == 3 else box.expand(len(a), -1, -1)
    for target, source, (start, stop) in zip(out, b, boxes.tolist(), strict=True):
        sides = [slice(max(begin, 0), max(end, 0)) for begin, end in zip(start, stop, strict=True)]
        inside = (..., *sides)
        target[inside] = source[inside]
    return out


def cutmix_reference(
    image_a: torch.Tensor,
    image_b: torch.Tensor,
    label_a: torch.Tensor,
    label_b: torch.Tensor,
    box: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cutmix` by its definition."""
    _check([image_a, image_b, label_a, label_b], box)
    return splice_reference(image_a, image_b, box), splice_reference(label_a, label_b, box)


def _check(tensors: Sequence[torch.Tensor], box: torch.Tensor) -> None:
    """Raises an error if the pairs and the box do not fit together, as the kernels do."""
    if box.dtype != torch.int64:
        raise TypeError(f"expected an int64 box, got {box.dtype}")
    if box.ndim not in (2, 3) or box.shape[-2] != 2 or not 1 <= box.shape[-1] <= 3:
        raise ValueError(
            f"expected a box (2, D) or (B, 2, D) of 1, 2 or 3 axes, got {tuple(box.shape)}"
        )
    first, axes = tensors[0], box.shape[-1]
    for a, b in zip(tensors[::2], tensors[1::2], strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"expected a pair of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        if a.dtype != b.dtype:
            raise TypeError(f"expected a pair of one dtype, got {a.dtype} and {b.dtype}")
        if a.ndim <= axes or a.shape[0] != first.shape[0] or a.shape[-axes:] != first.shape[-axes:]:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors[::2])
            raise ValueError(
                f"expected (B, ..., *S) with {axes} axes S, the same B and S for all, got {shapes}"
            )
    if box.ndim == 3 and box.shape[0] != first.shape[0]:
        raise ValueError(f"expected one box or {first.shape[0]}, got {box.shape[0]}")
    if first.shape[-axes:].numel() >= 2**31:
        raise ValueError(f"expected volumes of fewer than 2^31 voxels, got {tuple(first.shape)}")
    for tensor in tensors:
        if tensor.device != first.device or box.device not in (first.device, torch.device("cpu")):
            raise ValueError(
                f"expected one device, got {first.device}, {tensor.device} and a box on "
                f"{box.device}"
            )


def _fake_splice(a: torch.Tensor, b: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    _check((a, b), box)
    return a.new_empty(a.shape)


def _fake_cutmix(image_a, image_b, label_a, label_b, box) -> tuple[torch.Tensor, torch.Tensor]:
    _check((image_a, image_b, label_a, label_b), box)
    return image_a.new_empty(image_a.shape), label_a.new_empty(label_a.shape)


class _Differentiable(torch.autograd.Function):
    """An operator with its gradient, spliced too: to `b` inside the box and to `a` elsewhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator, box, *tensors):
        return operator(*tensors, box)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        (box,) = ctx.saved_tensors
        found = []
        for pair, grad in enumerate(grads):
            needed_a, needed_b = ctx.needs_input_grad[2 + 2 * pair : 4 + 2 * pair]
            zeros = None if grad is None else torch.zeros_like(grad)
            found.append(splice(grad, zeros, box) if needed_a and grad is not None else None)
            found.append(splice(zeros, grad, box) if needed_b and grad is not None else None)
        return (None, None, *found)


class _ForwardToo(_Differentiable):
    """The same with tangents, which are spliced like values.

    This is a class of its own because torch.compile does not accept a `jvp`.
    """

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Differentiable.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx, _operator, _box, *tangents):
        (box,) = ctx.saved_tensors
        found = []
        for a, b in zip(tangents[::2], tangents[1::2], strict=True):
            if a is None and b is None:
                found.append(None)
                continue
            found.append(
                splice(
                    torch.zeros_like(b) if a is None else a,
                    torch.zeros_like(a) if b is None else b,
                    box,
                )
            )
        return found[0] if len(found) == 1 else tuple(found)


def _run(operator: Callable, tensors: Sequence[torch.Tensor], box: torch.Tensor):
    # The operator checks its own arguments, and torch.library.register_autograd is not used: Python
    # that runs at every call took a fifth of the time of a batch.
    for tensor in (*tensors, box):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected tensors, got {type(tensor).__name__}")
    if forward_ad._current_level >= 0:
        return _ForwardToo.apply(operator, box, *tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Differentiable.apply(operator, box, *tensors)
    return operator(*tensors, box)


_splice = _library.register(
    "splice(Tensor a, Tensor b, Tensor box) -> Tensor", splice_reference, _fake_splice
)
_cutmix = _library.register(
    "cutmix(Tensor image_a, Tensor image_b, Tensor label_a, Tensor label_b, Tensor box) -> "
    "(Tensor, Tensor)",
    cutmix_reference,
    _fake_cutmix,
)
