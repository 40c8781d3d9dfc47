"""The card's list of files, and the lines that load them."""

from shard.release.card.facts import Facts
from shard.release.card.markdown import PICTURES, table
from shard.release.gguf import limits
from shard.release.hugging_face import MIXTURE_FILE, obstacle
from shard.units import format_size

LOADING = """\
import sys, torch
sys.path.insert(0, 'code')
from config import Config
from model import ToyLM
from tokenizer import load_tokenizer
ck = torch.load('models/model.pt', map_location='cpu', weights_only=True)
cfg = Config(**ck['cfg']) if isinstance(ck['cfg'], dict) else ck['cfg']
model = ToyLM(cfg).to(torch.bfloat16)          # .cuda() first where there is a GPU
model.load_state_dict(ck['model'])
model.eval()
tok = load_tokenizer('models/tokenizer.json')
ids = torch.tensor([tok.encode('The capital of France is').ids])   # device='cuda' where there is a GPU
with torch.no_grad():
    for _ in range(40):
        logits, _ = model(ids)
        nxt = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, nxt], 1)
print(tok.decode(ids[0].tolist()))
"""

TRANSFORMERS = """\
from transformers import pipeline
generate = pipeline('text-generation', model='{model}')
print(generate('The capital of France is', max_new_tokens=40)[0]['generated_text'])
"""

GGUF_FILES = {
    "bf16": "for llama.cpp: the same weights, tokenizer included",
    "q8_0": "for llama.cpp: 8 bits a weight and a scale for each 32",
    "f32": "for llama.cpp: the weights before they were rounded to bf16",
}


def files_section(facts: Facts) -> str:
    """Every file or folder of the bundle that is there, or of the repository that it becomes."""
    folder = facts.bundle
    for_transformers = "the same weights, in bf16, for transformers: VaultGemmaForCausalLM, no remote code"
    if facts.run.recipe.config.moe is not None:
        for_transformers = "the same weights, in bf16, for transformers, with the code of the model: trust_remote_code"
    what = {
        "models/model.pt": "the weights in bf16: keys model, cfg",
        "models/pretrain.pt": "what the anneal branched from, in bf16: model, optimizer, step, tokens, cfg",
        "models/tokenizer.json": "the tokenizer, in the format of `tokenizers`",
        "hf/": for_transformers,
        "code/": "config.py, model.py, tokenizer.py, muon.py: need only torch and tokenizers",
        "recipe.toml": "every setting of the run",
        f"{PICTURES}/": "the curves of this card",
        **{
            f"gguf/{path.name}": GGUF_FILES[path.stem.rpartition("-")[2]] for path in sorted(folder.glob("gguf/*.gguf"))
        },
        "SHA256SUMS": "check with `sha256sum -c SHA256SUMS`",
    }
    rows = []
    for name, meaning in what.items():
        path = folder / name
        if name.endswith("/") and not path.is_dir():
            continue
        shown = f"`{name}`"
        if name == "hf/" and facts.repository:
            shown, path = "`config.json`, `tokenizer.json` and others beside it", folder / "hf" / "model.safetensors"
            shown = f"`model.safetensors`, {shown}"
        # SHA256SUMS is written after the card, whose own sum stands in it.
        has_size = path.is_file() and name != "SHA256SUMS"
        rows.append([shown, format_size(path.stat().st_size) if has_size else "", meaning])
    return "## Files\n\n" + table(["file", "size", "what it is"], rows)


def loading_section(facts: Facts) -> str:
    """With torch alone, with transformers, with llama.cpp, with Shard."""
    return (
        "## How to load it\n\nWith torch and tokenizers alone, in this folder:\n\n"
        f"```python\n{LOADING}```\n\n{_transformers(facts)}{_llama_cpp(facts)}"
        'With Shard: `shard generate . "The capital of France is"`. To train on from where the pretraining ended:\n'
        "`shard import . --out runs/imported`, then `shard anneal runs/imported`.\n"
    )


def _transformers(facts: Facts) -> str:
    if reason := obstacle(facts.run.recipe.config):
        return f"There is {reason}.\n\n"
    lines = TRANSFORMERS.format(model=facts.repository or "hf")
    if facts.run.recipe.config.moe is not None:
        lines = lines.replace("')\n", "', trust_remote_code=True)\n", 1)
        return (
            "With transformers, version 5.23 or newer, which has no such mixture of experts: the folder brings "
            f"`{MIXTURE_FILE}`, which is run, as `trust_remote_code` says. Read it first.\n\n```python\n{lines}```\n\n"
        )
    return f"With transformers, version 5.23 or newer, and no code of ours:\n\n```python\n{lines}```\n\n"


def _llama_cpp(facts: Facts) -> str:
    files = sorted((facts.bundle / "gguf").glob("*.gguf"))
    if not files:
        return ""
    body = '{"prompt": "The capital of France is", "max_tokens": 40, "temperature": 0}'
    return (
        "With llama.cpp, and what is built on it (Ollama, LM Studio), tokenizer included:\n\n"
        f"```console\n$ llama-server -m gguf/{files[0].name}\n"
        f"$ curl -s 127.0.0.1:8080/v1/completions -d '{body}'\n```\n\n{limits(facts.run.recipe.config)}\n\n"
    )
