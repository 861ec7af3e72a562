"""Compare the selective scan and the causal convolution with other implementations.

    python benchmarks/scan.py --json scan.json --markdown scan.md

All implementations run forward and backward, alternately and on the same inputs. Each round gives a
ratio to ours, and the table has the median ratio. Other packages run twice: in a process with the
default settings, and in this one. `mambapy` is included if it is installed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache, partial

import torch
from common import allocator
from common.installed import NOTE, compare
from common.report import Section, command_line, missing, publish
from common.scans import (
    BATCH,
    LOOP,
    MAMBAPY,
    NAMES,
    OURS,
    STATES,
    TRANSFORMERS,
    WIDTH,
    differentiate,
    draw,
    scans,
)
from common.timing import Job, alternate, ratios
from torch import Tensor, nn

from kinopoisk_ft.ops.conv.op import causal_conv1d
from kinopoisk_ft.ops.scan.op import selective_scan

SIZES = f"Batch {BATCH}, width {WIDTH}, {STATES} states, float32, forward and backward."
# (batch, length, width) of a layer of mamba-130m.
CONV_SHAPE, TAPS = (8, 512, 1536), 4
# Tokens in each row of 512 positions: 2844 of 4096, so the ideal speedup is 1.44.
ROWS = (512, 480, 440, 400, 350, 290, 220, 152)


@cache
def job(name: str, length: int) -> Job:
    """Return a forward and backward pass over inputs of a length; it has already run once."""
    torch.manual_seed(length)
    passes = partial(differentiate, scans()[name], draw(length), torch.randn(BATCH, length, WIDTH))
    passes()
    return passes


def speed(lengths: Sequence[int], hf_lengths: Sequence[int], rounds: int) -> Section:
    """Time every implementation at every length, and the loop of transformers at `hf_lengths`."""
    rows = []
    for length in lengths:
        names = [name for name in scans() if name != TRANSFORMERS or length in hf_lengths]
        found = compare(job, names, length, rounds, turn=0.2)
        rows += [{"length": length, **row} for row in found]
    note = (
        f"{SIZES} Rounds: {rounds}. {NOTE} `{LOOP}`: our reference backend, a loop over time. The "
        f"loop of {TRANSFORMERS} is timed at short lengths only: its backward pass takes quadratic "
        "time, because each step's slice of (batch, width, length, states) gets a gradient of the "
        f"whole size. At other lengths, compare with `{LOOP}` and mambapy (a scan in log2(length) "
        "sweeps)." + missing([MAMBAPY], scans())
    )
    return Section("Selective scan", note, rows)


def growth(lengths: Sequence[int], rounds: int) -> Section:
    """Time our scan at increasing lengths."""
    seconds = alternate({str(length): job(OURS, length) for length in lengths}, rounds)
    per_token = {
        length: 1e6 * statistics.median(seconds[str(length)]) / (BATCH * length)
        for length in lengths
    }
    low = min(per_token.values())
    rows = [{"length": length, "microseconds per token": x, "relative to the minimum": x / low}
            for length, x in per_token.items()]  # fmt: skip
    note = f"{SIZES} With linear time, a token takes the same time at every length."
    return Section("Time per token", note, rows)


def stopping(rounds: int) -> Section:
    """Time a padded batch with and without `lengths`, with which each row ends at its length."""
    length, lengths = max(ROWS), torch.tensor(ROWS)
    ideal = len(ROWS) * length / sum(ROWS)
    inputs, grad = draw(length), torch.randn(BATCH, length, WIDTH)
    whole = partial(selective_scan, backend="numba")
    ways: dict[str, Job] = {
        "padded": partial(differentiate, whole, inputs, grad),
        "stopping": partial(differentiate, partial(whole, lengths=lengths), inputs, grad),
    }
    seconds = alternate(ways, rounds)
    gain = ratios(seconds["padded"], seconds["stopping"])
    note = (
        f"Rows of {', '.join(map(str, ROWS))} tokens, padded to {length}. `ideal speedup`: all "
        "positions divided by real tokens."
    )
    return Section(
        "Speedup by skipping padding", note,
        [{"ideal speedup": ideal, "speedup": gain.pop("ratio"), **gain}],
    )  # fmt: skip


def convolution(rounds: int) -> Section:
    """Compare the fused convolution and SiLU with F.conv1d followed by F.silu."""
    batch, length, width = CONV_SHAPE
    taps = [torch.randn(width, TAPS).requires_grad_(), torch.randn(width).requires_grad_()]
    x, grad = (torch.randn(CONV_SHAPE) for _ in "xg")
    first = x.transpose(1, 2).contiguous().requires_grad_()

    def channels_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padding = TAPS - 1
        out = nn.functional.conv1d(x, weight[:, None], bias, padding=padding, groups=width)
        return nn.functional.silu(out[..., :length])

    fused, plain = (partial(causal_conv1d, backend=name) for name in ("numba", "torch"))
    inputs = [x.requires_grad_(), *taps]
    own_layout = [first, *taps], grad.transpose(1, 2).contiguous()
    ways: dict[str, Job] = {
        OURS: partial(differentiate, fused, inputs, grad),
        "F.conv1d, F.silu on (batch, width, length)": partial(
            differentiate, channels_first, *own_layout
        ),
        "F.conv1d, F.silu on (batch, length, width)": partial(differentiate, plain, inputs, grad),
    }
    seconds = alternate(ways, rounds)
    rows = [{"way": name, "ms": 1e3 * statistics.median(found), **ratios(found, seconds[OURS])}
            for name, found in seconds.items()]  # fmt: skip
    note = (
        f"Batch {batch}, length {length}, width {width}, {TAPS} taps, float32, forward and "
        "backward. A Mamba block has the layout (batch, length, width); F.conv1d expects the other."
    )
    return Section("Causal convolution and SiLU", note, rows)


def errors(length: int) -> Section:
    """Compare every implementation with the definition in float64."""
    inputs, grad = draw(length), torch.randn(BATCH, length, WIDTH)
    ways = scans()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    want = differentiate(ways[LOOP], exact, grad.double())
    rows = []
    for name, scan in ways.items():
        if name == TRANSFORMERS:
            continue
        got = differentiate(scan, inputs, grad)
        shares = [((x - y).norm() / y.norm()).item() for x, y in zip(got, want, strict=True)]
        rows.append({"way": name, **dict(zip(("output", *NAMES), shares, strict=True))})
    note = (
        f"{SIZES} Length {length}. |x - y| / |y| in the Euclidean norm, for the output and each "
        "gradient x; y is computed by the definition in float64."
    )
    return Section("Error", note, rows)


def warm_up() -> None:
    """Compile the kernels of the scan and start the threads."""
    for name in scans():
        job(name, 8)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--hf-lengths", type=int, nargs="*", metavar="L",
        help=f"lengths for the quadratic loop of {TRANSFORMERS} (default: the shortest)",
    )  # fmt: skip
    args = parser.parse_args()
    remark = allocator.keep()
    torch.manual_seed(0)
    warm_up()
    lengths = [64, 256] if args.quick else [128, 256, 512, 1024]
    hf_lengths = lengths[:1] if args.hf_lengths is None else args.hf_lengths
    rounds = 1 if args.quick else 5
    sections = [
        speed(lengths, hf_lengths, rounds),
        growth([128, 1024] if args.quick else [128, 256, 512, 1024, 2048, 4096], 3 * rounds),
        stopping(3 * rounds),
        convolution(3 * rounds),
        errors(64 if args.quick else 512),
    ]
    publish("Selective scan and causal convolution on a CPU", sections, args, remark)


if __name__ == "__main__":
    main()
