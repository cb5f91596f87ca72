"""Small random pipelines in diffusers' layout."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

SIDE = 16
"""Of the pictures that they draw."""


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
    )


def save_dit(folder: Path, labels: dict[int, str] | None = None) -> DiTPipeline:
    """Save a class-conditional pipeline that says its labels as the published ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            sample_size=SIDE // 2,
            num_layers=2,
            patch_size=4,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        )
        # Of a new model all blocks are silent, so that every label would give the same picture.
        for value in transformer.parameters():
            value.data.normal_(std=0.2)
        pipeline = DiTPipeline(transformer.eval(), vae().eval(), DDIMScheduler())
    pipeline.save_pretrained(folder)
    if labels is not None:
        file = folder / "model_index.json"
        index = json.loads(file.read_text())
        index["id2label"] = {str(number): name for number, name in labels.items()}
        file.write_text(json.dumps(index))
    return pipeline


def save_ddpm(folder: Path) -> None:
    """Save a pipeline that knows no classes."""
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    vae().save_pretrained(folder / "vae")


def save_sd(folder: Path) -> None:
    """Save a text-to-image pipeline whose text model reads letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 40
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=40,
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
                pad_token_id=1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=8,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                clip_sample=False, steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip
