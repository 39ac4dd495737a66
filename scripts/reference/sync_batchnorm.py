"""torch.nn.BatchNorm1d / BatchNorm2d of one process on a whole batch: what synchronised BatchNorm has to equal.

    python scripts/reference/sync_batchnorm.py --seed 1 [--out tests/golden] [--fp32]

Values, names and precision by the rules at the top of model.py. Two steps, so that the running statistics move twice.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import fill, fill_state

CASES = {"heads": (12, 7), "maps": (12, 5, 3, 4)}


def reference(seed):
    tensors = {}
    for case, shape in CASES.items():
        norm = torch.nn.BatchNorm1d(shape[1]) if len(shape) == 2 else torch.nn.BatchNorm2d(shape[1])
        with torch.no_grad():
            for name, tensor in norm.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.copy_(fill_state(f"{case}.{name}", tensor.shape, seed))
        for step in range(2):
            key = f"{case}.{step}"
            # Off centre, so that a variance by the difference of squares would show.
            x = (fill(f"input.{key}", shape, seed) + 3.0).requires_grad_()
            norm.zero_grad()
            y = norm(x)
            (y * fill(f"grad.{key}", shape, seed)).sum().backward()
            tensors |= {
                f"{key}.output": y,
                f"{key}.input.grad": x.grad,
                f"{key}.weight.grad": norm.weight.grad,
                f"{key}.bias.grad": norm.bias.grad,
                f"{key}.running_mean": norm.running_mean,
                f"{key}.running_var": norm.running_var,
            }
            tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return tensors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--fp32", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32 if args.fp32 else torch.float64)
    tensors = {name: tensor.float().contiguous() for name, tensor in reference(args.seed).items()}
    tensors["seed"] = torch.tensor(args.seed)
    tensors["fp32"] = torch.tensor(int(args.fp32))
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "sync_batchnorm.safetensors", {"seed": str(args.seed)})


if __name__ == "__main__":
    main()
