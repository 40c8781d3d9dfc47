"""A small tokenizer of the form of Gemma's: spaces become U+2581, unknown characters become bytes, a token stands
before every text, and one added token lies beyond the table.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


def write_like_gemma(folder: Path, texts: Iterable[str]) -> Path:
    """Train it on these texts; the path of its tokenizer.json, with 420 tokens at most and one of the id 1000."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *alphabet], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [one for one in parts["added_tokens"] if one["content"] in special]
    parts["added_tokens"].append({**parts["added_tokens"][0], "id": 1000, "content": "<image>"})
    path = folder / "tokenizer.json"
    folder.mkdir()
    path.write_text(json.dumps(parts), encoding="utf-8")
    return path
