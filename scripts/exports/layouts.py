"""Files of other trainers, read by byol: the same features as the network that they were saved from.

    python scripts/exports/layouts.py [--byol target/release/byol] [--work /tmp/layouts] [--only convnext]

ConvNeXts and ViTs of torchvision, timm and transformers with random weights are saved by these libraries, and read with
the features that they give there.

A torchvision ResNet-18 is trained for a few steps and saved in the layout of each trainer, by the trainer's own code
where it installs (timm's CheckpointSaver, a lightly model saved by Lightning's Trainer, transformers' save_pretrained,
mmpretrain's and solo-learn's BYOL), else with its names; as `.pth` and as safetensors. `byol extract-features` must give
torchvision's features for each, to 1e-5 of the largest, and refuse to choose where a file holds several encoders. A
library that is missing is named and its layout written with its names alone.
"""

import argparse
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

BOUND = 1e-5
SIZE, COUNT = 64, 12
MEAN, STD = [0.48, 0.45, 0.40], [0.23, 0.22, 0.25]
CONFIG = """
data: {{format: image_folder, path: "{images}", workers: 1}}
augment: {{size: {size}, mean: {mean}, std: {std}}}
train: {{precision: fp32, device: cpu, threads: 1}}
"""


def trained():
    """A ResNet-18 after a few steps: every tensor differs from its first value."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, SIZE, SIZE)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), optimizer


def other(model):
    """The same network with other weights: a moving average that must not be taken for it."""
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    average = torchvision.models.resnet18(num_classes=4)
    average.load_state_dict(state)
    return average.eval()


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def listed(model):
    """As an nn.Sequential of its children, without the classifier."""
    return nn.Sequential(*list(model.children())[:-1])


def hugging_face(model):
    """transformers' ResNetModel with these weights."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    theirs = ResNetModel(config).eval()
    state = {}
    for name, value in model.state_dict().items():
        kind = "convolution" if "conv" in name or "downsample.0" in name else "normalization"
        parts, leaf = name.split(".")[:-1], name.split(".")[-1]
        if parts == ["fc"]:
            continue
        if len(parts) == 1:
            place = "embedder.embedder"
        else:
            place = f"encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}."
            place += "shortcut" if parts[2] == "downsample" else f"layer.{int(parts[2][-1]) - 1}"
        state[f"{place}.{kind}.{leaf}"] = value
    theirs.load_state_dict(state)
    return theirs


def by_timm(model, optimizer, folder):
    import timm
    from timm.utils import CheckpointSaver

    theirs = timm.create_model("resnet18", num_classes=4)
    theirs.load_state_dict(model.state_dict())
    arguments = argparse.Namespace(model="resnet18", lr=0.05)
    CheckpointSaver(theirs, optimizer, args=arguments, checkpoint_dir=str(folder)).save_checkpoint(0, metric=1.0)
    return folder / "last.pth.tar"


def by_lightly(model, path):
    """The model of lightly's tutorials, saved by Lightning with its hyper-parameters and optimizer."""
    import pytorch_lightning as pl
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(pl.LightningModule):
        def __init__(self, lr=0.1, note=Path("a/path")):
            super().__init__()
            self.save_hyperparameters()
            self.backbone = listed(model)
            self.projection_head = SimCLRProjectionHead(512, 32, 16)

        def training_step(self, batch, _):
            return self.projection_head(self.backbone(batch[0]).flatten(1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)

    module = SimCLR()
    before = {k: v.clone() for k, v in module.backbone.state_dict().items()}
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, SIZE, SIZE)), 4)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, data)
    module.backbone.load_state_dict(before)  # the step has moved BatchNorm's statistics
    module.eval()
    trainer.save_checkpoint(path)


def by_solo_learn(model, path):
    """solo-learn's BYOL module; it needs one class of a package that no longer installs."""
    stubs = {name: types.ModuleType(name) for name in ["pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler"]}
    stubs["pl_bolts.optimizers.lr_scheduler"].LinearWarmupCosineAnnealingLR = object
    sys.modules.update(stubs)
    from solo.methods import BYOL

    module = BYOL(encoder="resnet18", num_classes=4, backbone_args={"cifar": False, "zero_init_residual": False},
                  max_epochs=1, batch_size=4, optimizer="sgd", lars=False, lr=0.1, weight_decay=0.0, classifier_lr=0.1,
                  exclude_bias_n_norm=False, accumulate_grad_batches=1, extra_optimizer_args={}, scheduler="none",
                  min_lr=0.0, warmup_start_lr=0.0, warmup_epochs=0, num_large_crops=2, num_small_crops=0,
                  proj_output_dim=16, proj_hidden_dim=32, pred_hidden_dim=32, momentum_classifier=False, base_tau_momentum=0.9,
                  final_tau_momentum=1.0)
    module.encoder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})
    torch.save({"epoch": 1, "state_dict": module.state_dict(), "hyper_parameters": {"lr": 0.1}}, path)


def by_mmpretrain(model, path):
    """mmpretrain's BYOL, saved by mmengine."""
    import mmpretrain.models  # noqa: F401, registers its parts
    from mmengine.runner.checkpoint import save_checkpoint
    from mmpretrain.registry import MODELS

    neck = dict(type="NonLinearNeck", in_channels=512, hid_channels=32, out_channels=16, num_layers=2, with_avg_pool=True)
    head = dict(type="LatentPredictHead", loss=dict(type="CosineSimilarityLoss"),
                predictor=dict(type="NonLinearNeck", in_channels=16, hid_channels=32, out_channels=16, num_layers=2,
                               with_avg_pool=False))
    module = MODELS.build(dict(type="BYOL", backbone=dict(type="ResNet", depth=18), neck=neck, head=head))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    missing = module.backbone.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys, missing
    save_checkpoint({"meta": {"epoch": 1}, "state_dict": module.state_dict(), "message_hub": {}}, str(path))


def layouts(folder):
    """(name, file, prefix to choose with, state_dict for safetensors), and what could not be written by its library."""
    model, optimizer = trained()
    average, state = other(model), model.state_dict()
    both = lambda ours, theirs: prefixed(state, ours) | prefixed(average.state_dict(), theirs)
    queue = {"module.queue": torch.zeros(16, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    heads = {"module.head.mlp.0.weight": torch.zeros(4, 512), "module.head.last_layer.weight_g": torch.zeros(4, 1)}
    namespace = argparse.Namespace(arch="resnet50", lr=0.1, nested={"k": [1, None]})
    written = {
        "torchvision": (state, None),
        "DataParallel": (nn.DataParallel(model).state_dict(), None),
        "Sequential": (listed(model).state_dict(), None),
        "MoCo": ({"epoch": 1, "arch": "resnet18", "optimizer": optimizer.state_dict(),
                  "state_dict": both("module.encoder_q.", "module.encoder_k.") | queue}, "encoder_q"),
        "solo-learn's names": ({"epoch": 1, "state_dict": both("backbone.", "momentum_backbone.")}, "backbone"),
        "DINO": ({"student": prefixed(average.state_dict(), "module.backbone.") | heads,
                  "teacher": prefixed(state, "backbone.") | heads, "optimizer": optimizer.state_dict(), "epoch": 1,
                  "args": namespace}, "teacher"),
        "VISSL": ({"phase_idx": 1, "classy_state_dict": {
            "train_phase_idx": 0, "optimizer": optimizer.state_dict(),
            "base_model": {"meta": {}, "model": {"trunk": prefixed(state, "_feature_blocks."),
                                                 "heads": {"0.clf.0.weight": torch.zeros(4, 512)}}}}}, None),
        "mmselfsup's names": ({"meta": {"epoch": 1}, "state_dict": both("backbone.", "target_net.module.0.")
                               | prefixed(state, "online_net.0.")}, "backbone"),
        "shortcut": ({k.replace("downsample", "shortcut"): v for k, v in state.items()}, None),
        "torch.compile": ({"model": torch.compile(model).state_dict()}, None),
    }
    rows, missing = [], []
    for name, (content, prefix) in written.items():
        path = folder / f"{name.replace(' ', '_')}.pth"
        torch.save(content, path)
        rows.append((name, path, prefix))
    for name, prefix, write in [
        ("timm", None, lambda path: by_timm(model, optimizer, folder)),
        ("lightly", None, lambda path: by_lightly(model, path)),
        ("solo-learn", "encoder", lambda path: by_solo_learn(model, path)),
        ("mmpretrain", "backbone", lambda path: by_mmpretrain(model, path)),
    ]:
        try:
            path = folder / f"{name}.ckpt"
            rows.append((name, write(path) or path, prefix))
        except ImportError as error:
            missing.append(f"{name}: {error}")
    try:
        theirs = hugging_face(model)
        theirs.save_pretrained(folder / "transformers")
        torch.save(theirs.state_dict(), folder / "transformers.bin")
        rows += [("transformers, folder", folder / "transformers", None), ("transformers", folder / "transformers.bin", None)]
        with torch.no_grad():
            x = torch.randn(2, 3, SIZE, SIZE)
            expected = listed(model)(x).flatten(1)
            assert torch.allclose(theirs(x).pooler_output.flatten(1), expected, rtol=1e-4, atol=1e-4)
    except ImportError as error:
        missing.append(f"transformers: {error}")
    torch.save(model, folder / "whole_model.pth")
    return model, rows, missing


def shuffled(model):
    """The model with other weights than its first, which make a ConvNeXt's blocks nearly the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return model.eval()


def by_families(folder, inputs):
    """(name, file, prefix, features) of ConvNeXt and ViT."""
    import timm
    import transformers
    from torchvision.models import VisionTransformer, convnext_small, vit_b_16

    def pre_logits(model, x):
        return model.forward_head(model.forward_features(x), pre_logits=True)

    def transformer_config(channels, heads, patch):
        return transformers.ViTConfig(hidden_size=channels, num_attention_heads=heads, intermediate_size=4 * channels,
                                      image_size=SIZE, patch_size=patch, layer_norm_eps=1e-6)

    depths, dims = [3, 3, 27, 3], [128, 256, 512, 1024]
    base = transformers.ConvNextConfig(depths=depths, hidden_sizes=dims, layer_norm_eps=1e-6)
    pooled = lambda model, x: model(x).pooler_output
    token = lambda model, x: model(x).last_hidden_state[:, 0]
    models = {
        "torchvision convnext_small": (convnext_small(), lambda m, x: m.classifier[:2](m.avgpool(m.features(x))).flatten(1)),
        "torchvision vit_b_16": (vit_b_16(image_size=SIZE), None),
        "torchvision vit_small": (VisionTransformer(SIZE, 8, 12, 6, 384, 1536), None),
        "timm convnext_tiny": (timm.create_model("convnext_tiny"), pre_logits),
        "timm convnext_base": (timm.create_model("convnext_base", num_classes=0), pre_logits),
        "timm vit_tiny_patch16": (timm.create_model("vit_tiny_patch16_224", img_size=SIZE), pre_logits),
        "timm vit_small_patch8": (timm.create_model("vit_small_patch8_224", img_size=SIZE), pre_logits),
        "timm vit_base_patch16": (timm.create_model("vit_base_patch16_224", img_size=SIZE), pre_logits),
        "timm vit of another grid": (
            timm.create_model("vit_small_patch16_224", img_size=2 * SIZE, dynamic_img_size=True), pre_logits),
        "transformers convnext_tiny": (transformers.ConvNextModel(transformers.ConvNextConfig(layer_norm_eps=1e-6)), pooled),
        "transformers convnext_base": (transformers.ConvNextForImageClassification(base),
                                       lambda m, x: m.convnext(x).pooler_output),
        "transformers vit_tiny": (transformers.ViTModel(transformer_config(192, 3, 16)), token),
        "transformers vit_base": (transformers.ViTModel(transformer_config(768, 12, 8)), token),
        "transformers vit_small": (transformers.ViTForImageClassification(transformer_config(384, 6, 16)),
                                   lambda m, x: m.vit(x).last_hidden_state[:, 0]),
    }
    for name, (model, features) in models.items():
        if features is None:
            model.heads, features = nn.Identity(), lambda m, x: m(x)
        with torch.no_grad():
            expected = features(shuffled(model), inputs)
        path = folder / f"{name.replace(' ', '_')}.pth"
        torch.save({"epoch": 1, "state_dict": prefixed(model.state_dict(), "module.encoder_q.")}, path)
        yield name, path, None, expected
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(path.with_suffix(""))
            yield f"{name}, folder", path.with_suffix(""), None, expected


def flat(tree, prefix=""):
    """Tensors in dictionaries with text keys, by their path."""
    out = {}
    for key, value in tree.items():
        if torch.is_tensor(value):
            out[f"{prefix}{key}"] = value.detach().contiguous().clone()
        elif isinstance(value, dict) and isinstance(key, str):
            out |= flat(value, f"{prefix}{key}.")
    return {key: value for key, value in out.items() if isinstance(key, str)}


def images(folder):
    """Pictures of the encoder's own size, so that nothing is resized, and what torchvision makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    plain = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (plain - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def features(args, config, path, prefix):
    """What `byol extract-features` writes, or its error."""
    output = args.work / "features.safetensors"
    command = [args.byol, "extract-features", "--checkpoint", path, "--config", config, "--output", output, "--force"]
    command += ["--prefix", prefix] if prefix is not None else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return load_file(output)["features"] if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description="reads files of other trainers with byol")
    parser.add_argument("--byol", default="target/release/byol")
    parser.add_argument("--work", type=Path, default=Path("/tmp/layouts"))
    parser.add_argument("--only", default="", help="a part of the names of the layouts")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    model, rows, missing = layouts(args.work)
    inputs, config = images(args.work / "images"), args.work / "config.yaml"
    config.write_text(CONFIG.format(images=args.work / "images", size=SIZE, mean=MEAN, std=STD))
    with torch.no_grad():
        expected = listed(model)(inputs).flatten(1)
    wrong, rows = 0, [(*row, expected) for row in rows] + list(by_families(args.work, inputs))
    rows = [row for row in rows if args.only in row[0]]
    for name, path, prefix, expected in rows:
        files = [path]
        if path.is_file():
            content = torch.load(path, map_location="cpu", weights_only=False)
            files.append(args.work / "copy.safetensors")
            save_file(flat(content), files[-1])
        for file in files:
            found = features(args, config, file, prefix)
            value = float("inf") if isinstance(found, str) else ((found - expected).abs().max() / expected.abs().max()).item()
            wrong += not value <= BOUND
            print(f"{name:28} {file.suffix or 'folder':12} {value:.1e} {found if isinstance(found, str) else ''}", flush=True)
            if prefix is not None:
                said = features(args, config, file, None)
                if not isinstance(said, str) or "encoders, expected one; choose with --prefix" not in said:
                    wrong += 1
                    print(f"{name}: one of several encoders was taken without a word: {said}")
    said = features(args, config, args.work / "whole_model.pth", None)
    if not isinstance(said, str) or "found no tensors in dictionaries" not in said:
        wrong += 1
        print(f"whole_model.pth: {said}")
    for line in missing:
        print(f"not written by its own code: {line}")
    print(f"{wrong} of {len(rows)} layouts are wrong" if wrong else f"all {len(rows)} layouts give the features of their networks")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
