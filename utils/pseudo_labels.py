"""Pseudo-labels of whole images, a byte a voxel: small in a checkpoint, and cut into crops like any
label map.

A byte holds the class and whether it is uncertain, of one problem with all classes, or of up to
four binary problems. So 0, which a crop has beyond the image's edge, is certain background: what
padding is of a labelled crop too.
"""

import zlib

import torch


def pack(labels, certain):
    """Bytes `(*S)` uint8 of one to four problems' classes (integers `(*S)`) and certain voxels
    (bool `(*S)`).

    Raises:
        ValueError: more problems or classes than a byte holds.
    """
    bits = 8 // len(labels)
    if bits < 2 or max(label.max() for label in labels) >= 1 << (bits - 1):
        raise ValueError(
            f"a byte cannot hold {len(labels)} problems with these classes and what is certain"
        )
    shares = [
        label + ((~sure).long() << (bits - 1)) for label, sure in zip(labels, certain, strict=True)
    ]
    return sum(share << (k * bits) for k, share in enumerate(shares)).to(torch.uint8)


def unpack(code, count):
    """What `pack` put in for `count` problems: lists of classes int64 and of certain voxels
    bool.
    """
    bits = 8 // count
    shares = [(code.long() >> (k * bits)) % (1 << bits) for k in range(count)]
    return [share % (1 << (bits - 1)) for share in shares], [
        share < 1 << (bits - 1) for share in shares
    ]


def found(volumes, count, names, certain):
    """A line for the log: in how many of the relabelled images each foreground class is, and which
    is in none.

    Args:
        volumes: what `pack` gave, by case.
        count: problems in a byte, 1 or as many as names.
        names: of the foreground classes.
        certain: count certain voxels alone.
    """
    images = [0] * len(names)
    for volume in volumes.values():
        codes = torch.bincount(volume.flatten(), minlength=256).nonzero().flatten()
        labels, sure = unpack(codes, count)
        for k in range(len(names)):
            problem, label = (0, k + 1) if count == 1 else (k, 1)
            images[k] += bool(((labels[problem] == label) & (sure[problem] | (not certain))).any())
    shares = ", ".join(f"{name} in {number}" for name, number in zip(names, images, strict=True))
    absent = ", ".join(name for name, number in zip(names, images, strict=True) if not number)
    line = f"relabelled images: {len(volumes)}; {'certain' if certain else 'pseudo-label'} {shares}"
    return line + (f" - none has {absent}" if absent else "")


class CompressedVolumes(dict):
    """Case to uint8 tensor of any shape, small in a checkpoint: label maps compress a
    hundredfold.
    """

    def replace(self, volumes):
        """Hold `volumes` and nothing else."""
        self.clear()
        self.update(volumes)

    def state_dict(self):
        packed = {
            case: bytearray(zlib.compress(volume.numpy(), 1)) for case, volume in self.items()
        }
        return {
            case: (torch.frombuffer(p, dtype=torch.uint8), list(self[case].shape))
            for case, p in packed.items()
        }

    def load_state_dict(self, state):
        raw = {
            case: bytearray(zlib.decompress(packed.numpy())) for case, (packed, _) in state.items()
        }
        self.replace(
            {
                case: torch.frombuffer(r, dtype=torch.uint8).view(state[case][1])
                for case, r in raw.items()
            }
        )
