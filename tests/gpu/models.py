"""Models of real shapes with random weights, written by an engine's own environment.

    PROGRAM tests/gpu/models.py qwen3|flux2-klein FOLDER

PROGRAM is a Python with torch and transformers (and diffusers for `flux2-klein`); the weights are made on a GPU if
there is one. The tokenizer is trained on a sentence, so that no network is needed; what lies beyond its vocabulary is
never answered.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = "The sea is wide and deep. A server that sleeps must wake warm: it answers as it answered before. "
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3 8B's, from its config.json.
QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def tokenizer() -> Any:
    """A byte-level BPE tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bare.train_from_iterator([PAGE * 20], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def qwen3_model(words: int) -> Any:
    """Qwen3 8B in bf16 whose answers stay among the first `words` tokens, and never end."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_8B, bos_token_id=None, eos_token_id=2))
        with torch.no_grad():
            head = model.lm_head.weight
            head[words:] = 0  # logits of 0: the highest of 400 random ones is above that
            head[: len(SPECIAL)] = 0
    return model


def qwen3(folder: Path) -> None:
    """Write a language model."""
    words = tokenizer()
    words.save_pretrained(folder)
    qwen3_model(len(words)).save_pretrained(folder, max_shard_size="4GB")


def flux2_klein(folder: Path) -> None:
    """Write a pipeline with a transformer of 9.1 and a text encoder of 8.2 thousand million parameters."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    words = tokenizer()
    encoder = qwen3_model(len(words))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformer = Flux2Transformer2DModel(
            num_layers=8,
            num_single_layers=24,
            attention_head_dim=128,
            num_attention_heads=32,
            joint_attention_dim=12288,
            guidance_embeds=False,
        ).to(torch.bfloat16)
        vae = AutoencoderKLFlux2().to(torch.bfloat16)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        transformer=transformer,
        is_distilled=True,
    ).save_pretrained(folder, max_shard_size="4GB")


if __name__ == "__main__":
    kind, where = sys.argv[1], Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    {"qwen3": qwen3, "flux2-klein": flux2_klein}[kind](where)
    sys.stdout.write(json.dumps({"gb": round(sum(f.stat().st_size for f in where.rglob("*")) / 1e9, 2)}) + "\n")
