"""Small random autoencoders in diffusers' layout."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_kl(folder: Path, **changes) -> AutoencoderKL:
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 8, 8),
        "norm_num_groups": 2,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
        **changes,
    }
    return _save(AutoencoderKL, folder, options)


def save_vq(folder: Path, **changes) -> VQModel:
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "latent_channels": 3,
        "vq_embed_dim": 5,
        "num_vq_embeddings": 16,
        **changes,
    }
    return _save(VQModel, folder, options)


def save_tiny(folder: Path, **changes) -> AutoencoderTiny:
    options = {
        "encoder_block_out_channels": (8,) * 3,
        "decoder_block_out_channels": (8,) * 3,
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (2, 1, 1),
        "latent_channels": 4,
        **changes,
    }
    return _save(AutoencoderTiny, folder, options)


def save_pooled(folder: Path) -> dict[str, torch.Tensor]:
    """Save a tiny model with pooled blocks at the coarsest scale of its decoder."""
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    config["_class_name"] = "AutoencoderTinyFlux2"
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / WEIGHTS)
    rng = torch.Generator().manual_seed(1)
    for layer in ("decoder.layers.2", "decoder.layers.3", "encoder.layers.5"):
        weights[f"{layer}.pool.0.weight"] = torch.randn(32, 8, 1, 1, generator=rng)
        weights[f"{layer}.pool.1.weight"] = torch.rand(32, generator=rng)
        weights[f"{layer}.pool.1.bias"] = torch.randn(32, generator=rng)
        weights[f"{layer}.pool.3.weight"] = torch.randn(8, 32, 1, 1, generator=rng) / 8
    save_file({k: v.half() for k, v in weights.items()}, folder / WEIGHTS)
    return load_file(folder / WEIGHTS)


def _save(family, folder: Path, options: dict):
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family(**options).eval()
    model.save_pretrained(folder)
    return model
