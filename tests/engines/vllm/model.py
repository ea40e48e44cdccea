"""Writes a tiny Qwen3 into a folder: real architecture, random weights, a tokenizer trained on a page of text.

    python model.py FOLDER [HEAD_DIM]

Run by the engine's own interpreter. The weights have a spread of 0.3: with the usual 0.02 all tokens are about equally
likely, and a golden answer would show nothing.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAGE = (
    "The sea is wide and deep. At night it is louder than by day, because nobody else speaks. "
    "A server that sleeps must wake warm: it answers as it answered before, word by word. "
) * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text has tokens, whatever the page was."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator([PAGE], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=pairs, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    made.chat_template = TEMPLATE
    return made


def main(folder: Path, head_dim: int = 32) -> None:
    """Write tokenizer, configuration and weights."""
    words = tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,  # vLLM's attention for CPUs has a kernel for 32, and none for 16
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
