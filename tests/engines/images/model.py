"""Writes a FLUX.2-klein pipeline with random weights of 2 MB: `python model.py FOLDER`, with diffusers and torch.

The architecture is the real one, each part as small as it goes. The text encoder has 3 layers, of which the pipeline
must be told to take 1, 2 and 3 (`text_encoder_out_layers`); the transformer's width follows from those.
"""

# ruff: noqa: T201
from __future__ import annotations

import sys
from typing import Any

PAGE = """A lighthouse stands at dawn where the sea is wide and grey. A red square lies on a white table in oil.
What is the capital of France? Answer in one sentence. The boats come home before the storm, and the lamp is lit."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
WIDTH, LAYERS = 64, 3


def tokenizer() -> Any:
    """A byte-level BPE tokenizer that was trained on the page."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        PAGE.splitlines(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    fast.chat_template = TEMPLATE
    return fast


def main(folder: str) -> None:
    """Make the pipeline and save it."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    words = tokenizer()
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=128,
            vocab_size=len(words),
        )
    )
    transformer = Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH * LAYERS,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(block_out_channels=(16, 16, 16, 16), layers_per_block=1, norm_num_groups=8)
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        transformer=transformer,
        is_distilled=True,
    )
    pipeline.save_pretrained(folder)
    parts = sum(p.numel() for part in (encoder, transformer, vae) for p in part.parameters())
    print(f"{parts / 1e6:.2f} million parameters in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
