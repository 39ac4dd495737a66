"""Files of torch.save, and the tensors in them as safetensors, for the reader that has no Python.

    python scripts/reference/pytorch.py [--out tests/fixtures/pytorch]

`state_dict.pth` has every type and memory layout, `protocol4.pth` the same by another pickle protocol, `trainer.ckpt` a
state_dict among what trainers store beside it: an optimizer's state, an argparse namespace, an instance of a class that
nobody else has. Names of their tensors in the safetensors files have the keys of dictionaries before them.
`odd.pth` has tensors with attributes and of a subclass, and no checksums; `negative.pth` one that PyTorch negates when it
is read. `legacy.pth` is of the format before PyTorch 1.6, `module.pt` a TorchScript module.
"""

import argparse
import collections
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import save_file


class Custom:
    """Pickled by its name, which no other program can import."""

    def __init__(self):
        self.tensor, self.path = torch.ones(2), Path("/a/path")


def state_dict():
    grid = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    state = collections.OrderedDict()
    for dtype in [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8]:
        state[f"kinds.{str(dtype).removeprefix('torch.')}"] = torch.arange(-3, 4).to(dtype)
    state["kinds.bool"] = torch.tensor([True, False, True])
    state["channels_last.weight"] = grid.contiguous(memory_format=torch.channels_last)
    state["transposed.weight"] = grid[0, 0].t()
    state["shared.rows"] = grid[1, :, 1:3]
    state["shared.whole"] = grid
    state["scalar"] = torch.tensor(17)
    state["empty"] = torch.empty(0, 3)
    state["parameter"] = nn.Parameter(torch.linspace(-1, 1, 7))
    return state


class Subclass(torch.Tensor):
    pass


def odd():
    named = torch.linspace(-1, 1, 5)
    named.note = "an attribute"
    return {"named": named, "subclass": torch.arange(6.0).reshape(2, 3).as_subclass(Subclass), "plain": torch.ones(2)}


def trainer():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for i, tensor in enumerate(module.state_dict().values()):
            tensor.fill_(i + 0.5)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    namespace = argparse.Namespace(lr=0.1, betas=(0.9, 0.999), name="été", nested={"k": [1, 2.5, None]})
    return {"epoch": 3, "global_step": 10**12, "state_dict": module.state_dict(), "hyper_parameters": namespace,
            "optimizer_states": [optimizer.state_dict()], "callbacks": {Custom: Custom(), ("a", 1): {1, 2}, "none": None},
            "best": {"teacher": {"weight": torch.full((2, 2), -2.0)}}, "rng": bytes(range(9)), "loss": 1e300}


def flat(tree, prefix=""):
    """Tensors in dictionaries with text keys."""
    out = {}
    for key, value in tree.items():
        if isinstance(key, str):
            if torch.is_tensor(value):
                out[prefix + key] = value.detach().contiguous().clone()
            elif isinstance(value, dict):
                out |= flat(value, f"{prefix}{key}.")
    return out


def main():
    parser = argparse.ArgumentParser(description="files of torch.save for the tests of their reader")
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures/pytorch"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state, checkpoint = state_dict(), trainer()
    torch.save(state, out / "state_dict.pth")
    torch.save(state, out / "protocol4.pth", pickle_protocol=4)
    torch.save(checkpoint, out / "trainer.ckpt")
    save_file(flat(state), out / "state_dict.safetensors")
    save_file(flat(checkpoint), out / "trainer.safetensors")
    torch.serialization.set_crc32_options(False)
    torch.save(odd(), out / "odd.pth")
    torch.serialization.set_crc32_options(True)
    save_file({name: tensor.as_subclass(torch.Tensor) for name, tensor in odd().items()}, out / "odd.safetensors")
    torch.save({"weight": torch.complex(torch.ones(2), torch.ones(2)).conj().imag}, out / "negative.pth")
    torch.save({"weight": torch.ones(2)}, out / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Linear(2, 2)).save(str(out / "module.pt"))


if __name__ == "__main__":
    main()
