"""README.md of a release: the model card, in which every number comes from a file that the run wrote.

manifest.json, metrics.jsonl, evaluation.json, benchmark.json, the ledgers and the recipe; a part that the run did not
measure is said to be missing, never filled in.
"""

import json
from pathlib import Path
from typing import Any

from shard.data import documents, shards
from shard.release.gguf import limits
from shard.release.hugging_face import obstacle
from shard.run import Run
from shard.training.cost import count_parameters, flops_per_token
from shard.training.metrics import read_jsonl
from shard.units import format_count, format_duration, format_size

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
generate = pipeline('text-generation', model='hf')
print(generate('The capital of France is', max_new_tokens=40)[0]['generated_text'])
"""

GGUF_FILES = {
    "bf16": "for llama.cpp: the same weights, tokenizer included",
    "q8_0": "for llama.cpp: 8 bits a weight and a scale for each 32",
    "f32": "for llama.cpp: the weights before they were rounded to bf16",
}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'|'.join(' --- ' for _ in columns)}|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    """Model text inside a table: one line, no bar, shown as it is."""
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\r", " ").replace("\n", " ⏎ ") + "`"


def write_card(run: Run, folder: Path) -> None:
    """Write `folder/README.md`."""
    title = run.recipe.release.title or run.recipe.name
    sections = [
        _front_matter(run),
        f"# {title}\n\n{run.recipe.description}\n",
        _architecture(run),
        _training(run),
        _data(run),
        _evaluation(run),
        _benchmark(run),
        _samples(run),
        _files(folder),
        "## How to load it\n\nWith torch and tokenizers alone, in this folder:\n\n"
        f"```python\n{LOADING}```\n\n{_transformers(run)}{_llama_cpp(run, folder)}"
        'With Shard: `shard generate . "The capital of France is"`. To train on from where the pretraining ended:\n'
        "`shard import . --out runs/imported`, then `shard anneal runs/imported`.\n",
        _what_it_proves(run),
        _limits(run),
        f"## Licence\n\nWeights and code: {run.recipe.release.license}. The licences of the training text stand in the "
        "table of sources.\n",
        f"## Citation\n\n```bibtex\n@misc{{{run.recipe.name.replace('.', '-')},\n  title  = {{{title}}},\n"
        f"  author = {{{run.recipe.release.authors}}},\n  year   = {{{run.manifest['created'][:4]}}},\n"
        "  note   = {Trained with Shard}\n}\n```\n",
    ]
    (folder / "README.md").write_text("\n".join(section for section in sections if section), encoding="utf-8")


def _transformers(run: Run) -> str:
    if reason := obstacle(run.recipe.config):
        return f"There is {reason}.\n\n"
    return f"With transformers, version 5.23 or newer, and no code of ours:\n\n```python\n{TRANSFORMERS}```\n\n"


def _llama_cpp(run: Run, folder: Path) -> str:
    files = sorted((folder / "gguf").glob("*.gguf"))
    if not files:
        return ""
    body = '{"prompt": "The capital of France is", "max_tokens": 40, "temperature": 0}'
    return (
        "With llama.cpp, and what is built on it (Ollama, LM Studio), tokenizer included:\n\n"
        f"```console\n$ llama-server -m gguf/{files[0].name}\n"
        f"$ curl -s 127.0.0.1:8080/v1/completions -d '{body}'\n```\n\n{limits(run.recipe.config)}\n\n"
    )


def _front_matter(run: Run) -> str:
    return (
        f"---\nlicense: {run.recipe.release.license}\nlanguage: en\nlibrary_name: shard\n"
        "pipeline_tag: text-generation\ntags:\n- shard\n- muon\n- trained-from-scratch\n---\n"
    )


def _architecture(run: Run) -> str:
    c, count = run.recipe.config, count_parameters(run.recipe.config)
    rows = [
        ["Parameters", f"{count.total:,}"],
        ["Layers", f"{c.num_layers} ({c.layer_types}: L = local, window {c.sliding_window}; G = global)"],
        ["Hidden size, feed-forward", f"{c.hidden_size}, SwiGLU {c.intermediate_size}"],
        ["Heads", f"{c.num_heads} of {c.head_dim}"],
        ["Vocabulary", f"{c.vocab_size} (byte-level BPE, tied embeddings)"],
        ["Positions", f"RoPE, theta {c.rope_theta:g}, context {c.max_sequence_length}"],
        ["Logit cap", f"{c.logit_cap:g} * tanh(x / {c.logit_cap:g})"],
        ["Norms", f"RMSNorm before attention, feed-forward and head (1 + w), eps {c.norm_eps:g}"],
    ]
    return "## Architecture\n\n" + _table(["", ""], rows)


def _training(run: Run) -> str:
    rows, notes = [], []
    for stage in ("pretrain", "anneal"):
        settings, entry = getattr(run.recipe, stage), run.manifest["stages"].get(stage, {})
        lines = read_jsonl(run.folder / stage / "metrics.jsonl")
        if entry.get("status") == "imported":
            notes.append(
                "The weights were imported from a Hugging Face export; what trained them is not recorded here."
                if entry["result"].get("optimizer") == "fresh"
                else f"The pretraining was imported from another bundle at step {entry['result']['step']}."
            )
        if not lines:
            continue
        last = lines[-1]
        last_loss = next((line["cross_entropy_nats"] for line in reversed(lines) if "skipped" not in line), None)
        seconds = sum(line["timing"]["seconds"] for line in lines)
        tokens = len(lines) * settings.tokens_per_step
        flops = tokens * flops_per_token(run.recipe.config, settings.sequence_length)
        rows.append(
            [
                stage,
                f"{last['step']:,} of {settings.steps:,}",
                f"{settings.sequence_length:,}",
                format_count(tokens),
                "none" if last_loss is None else f"{last_loss:.4f}",
                format_duration(seconds),
                f"{tokens / seconds:,.0f}",
                f"{flops:.3g}",
            ]
        )
        if last["step"] < settings.steps:
            notes.append(f"{stage} was stopped at step {last['step']} of {settings.steps}.")
        events = read_jsonl(run.folder / stage / "events.jsonl")
        flagged = [event for event in events if event["event"] == "rank_loss"]
        looks = sum(event["event"] == "sentinel" for event in events)
        notes.append(f"Sentinel, {stage}: {looks} looks at the singular values, {len(flagged)} with rank loss flagged.")
        notes.append(_skipped(stage, lines, entry.get("result", {}).get("rollbacks", [])))
        if (starts := sum(event["event"] == "start" for event in events)) > 1:
            notes.append(f"{stage} was started {starts} times and went on from its last checkpoint.")
    columns = ["stage", "steps", "sequence", "tokens", "last loss (nats)", "time", "tokens/s", "FLOPs"]
    p, a = run.recipe.pretrain, run.recipe.anneal
    environment = run.manifest["stages"].get("pretrain", {}).get("environment") or run.manifest["stages"].get(
        "anneal", {}
    ).get("environment", {})
    versions = environment.get("versions", {})
    return (
        "## Training\n\n"
        + _table(columns, rows)
        + f"\nMuon ({p.muon_method}) for hidden matrices at {p.lr_muon:g}, AdamW for the table at {p.lr_embedding:g} "
        f"and for norms at {p.lr_norm:g}; weight decay {p.weight_decay:g}; z-loss {p.z_loss:g}. Warm-up over "
        f"{p.warmup_steps} steps, then constant; the anneal decays over {a.decay_steps} steps ({a.decay_shape}).\n\n"
        + "".join(f"- {note}\n" for note in notes)
        + (
            f"\nTrained on {environment.get('device', 'an unrecorded device')} with torch {versions.get('torch')}, "
            f"Shard {versions.get('shard')} ({environment.get('code_revision') or 'installed package'}).\n"
            if environment
            else ""
        )
    )


def _skipped(stage: str, lines: list[dict[str, Any]], rollbacks: list[dict[str, Any]]) -> str:
    """What the guard of the steps did, in one sentence or two."""
    skipped = [f"{line['step']:,} ({line['skipped']})" for line in lines if "skipped" in line]
    if not skipped and not rollbacks:
        return f"Guard, {stage}: no step was skipped."
    shown = ", ".join(skipped[:10]) + (f" and {len(skipped) - 10} more" if len(skipped) > 10 else "")
    text = f"Guard, {stage}: {len(skipped)} of {len(lines):,} steps were skipped" + (f": {shown}." if shown else ".")
    for r in rollbacks:
        text += (
            f" Trouble at step {r['step']:,} sent it back to step {r['checkpoint']:,}, past {len(r['passed_over'])} "
            "batches."
        )
    return text


def _data(run: Run) -> str:
    rows = []
    for name, source in run.recipe.sources.items():
        ledger, tokens = _read(run.data / name / documents.LEDGER), _read(run.data / name / shards.LEDGER)
        if not ledger or not tokens:
            continue
        mixes = []
        for stage in (run.recipe.pretrain, run.recipe.anneal):
            mixes.append(f"{100 * stage.mix.get(name, 0) / sum(stage.mix.values()):.1f}%")
        rows.append(
            [
                name,
                source.kind,
                ledger["license"],
                f"{ledger['documents']['train']:,}",
                format_size(ledger["bytes"]["train"]),
                format_count(tokens["tokens"]),
                f"{tokens['bytes_per_token']:.2f}",
                *mixes,
                format_size(ledger["bytes"]["heldout"]),
            ]
        )
    columns = [
        "source",
        "kind",
        "licence",
        "documents",
        "text",
        "tokens",
        "bytes/token",
        "pretrain",
        "anneal",
        "held out",
    ]
    return (
        "## Data\n\n" + _table(columns, rows) + "\nHeld-out documents were set aside before anything was trained, the "
        "tokenizer included.\n\n" + _dropped(run)
    )


def _dropped(run: Run) -> str:
    """What was left out of the sources, and which test questions they were compared with."""
    ledgers = {name: _read(run.data / name / documents.LEDGER) for name in run.recipe.sources}
    lines = []
    for name, ledger in ledgers.items():
        if ledger and ledger["dropped"]:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(ledger["dropped"].items()))
            lines.append(f"- Dropped from {name}, of {ledger['documents_read']:,} documents read: {counts}.\n")
    checked = sorted({name for ledger in ledgers.values() if ledger for name in ledger["evaluation_sets"]})
    if checked:
        lines.append(
            "- Documents that share 13 words in a row with a test question (or the whole of a shorter one, with its "
            f"choices) were dropped; compared with {', '.join(checked)}.\n"
        )
    else:
        lines.append("- The documents were not compared with any test questions.\n")
    return "".join(lines)


def _evaluation(run: Run) -> str:
    evaluation = _read(run.folder / "evaluation.json")
    if not evaluation:
        return "## Evaluation\n\nNot measured in this run.\n"
    rows = [
        [
            name,
            f"{s['bytes']:,}",
            f"{s['bits_per_byte']:.4f}",
            f"{s['xz_bits_per_byte']:.4f}",
            f"{s['cross_entropy_nats']:.4f}",
        ]
        for name, s in evaluation["sources"].items()
    ]
    columns = ["held-out source", "bytes", "bits per byte", "xz -9e, bits per byte", "cross-entropy, nats a token"]
    return (
        "## Evaluation\n\n"
        + _table(columns, rows)
        + f"\n{evaluation['precision']}; windows of {evaluation['context']} "
        f"tokens that advance by {evaluation['stride']}; no context across documents.\n"
    )


def _benchmark(run: Run) -> str:
    benchmark = _read(run.folder / "benchmark.json")
    if not benchmark:
        return "## Benchmark\n\nNot measured in this run.\n"

    def cell(value: dict[str, float], factor: float = 1, digits: int = 0) -> str:
        low, high = value["min"] * factor, value["max"] * factor
        return f"{value['median'] * factor:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"

    rows = [
        [
            name,
            cell(r["decode_tokens_per_second"]),
            cell(r["time_to_first_token_seconds"], 1000, 1),
            cell(r["prefill_tokens_per_second"]),
            format_size(r["footprint_bytes"]),
        ]
        for name, r in benchmark["inference"].items()
    ]
    columns = ["precision", "greedy decode, tokens/s", "first token, ms", "prefill, tokens/s", "weights"]
    training = "".join(
        f"- Training, {stage}: {cell(speed)} tokens/s.\n"
        for stage, speed in benchmark["training_tokens_per_second"].items()
    )
    return (
        f"## Benchmark\n\n{benchmark['device']}, torch {benchmark['versions']['torch']}, batch 1; "
        "median (least to most).\n\n" + _table(columns, rows) + "\n" + training
    )


def _samples(run: Run) -> str:
    evaluation = _read(run.folder / "evaluation.json")
    if not evaluation.get("samples"):
        return ""
    how = evaluation["sampling"]
    rows = [[_cell(s["prompt"]), _cell(s["text"][len(s["prompt"]) :])] for s in evaluation["samples"]]
    return (
        f"## Sampled outputs\n\nTemperature {how['temperature']}, top-p {how['top_p']}, seed {how['seed']}, at most "
        f"{how['max_tokens']} tokens, the first draw of each.\n\n" + _table(["prompt", "continuation"], rows)
    )


def _files(folder: Path) -> str:
    gguf = sorted((folder / "gguf").glob("*.gguf"))
    what = {
        "models/model.pt": "the weights in bf16: keys model, cfg",
        "models/pretrain.pt": "what the anneal branched from, in bf16: model, optimizer, step, tokens, cfg",
        "models/tokenizer.json": "the tokenizer, in the format of `tokenizers`",
        "hf/": "the same weights, in bf16, for transformers: VaultGemmaForCausalLM, no remote code",
        "code/": "config.py, model.py, tokenizer.py, muon.py: need only torch and tokenizers",
        "recipe.toml": "every setting of the run",
        **{f"gguf/{path.name}": GGUF_FILES[path.stem.rpartition("-")[2]] for path in gguf},
        "SHA256SUMS": "check with `sha256sum -c SHA256SUMS`",
    }
    rows = []
    for name, meaning in what.items():
        if name == "hf/" and not (folder / name).is_dir():
            continue
        path = folder / name
        rows.append([f"`{name}`", format_size(path.stat().st_size) if path.is_file() else "", meaning])
    return "## Files\n\n" + _table(["file", "size", "what it is"], rows)


def _what_it_proves(run: Run) -> str:
    evaluation = _read(run.folder / "evaluation.json")
    if not evaluation:
        return ""
    sources = evaluation["sources"].items()
    better = [name for name, s in sources if s["bits_per_byte"] < s["xz_bits_per_byte"]]
    worse = [name for name, s in sources if s["bits_per_byte"] >= s["xz_bits_per_byte"]]
    lines = []
    if better:
        lines.append(f"- It predicts unseen text of {', '.join(better)} better than `xz -9e` compresses it.")
    if worse:
        lines.append(f"- It does **not** reach `xz -9e` on {', '.join(worse)}.")
    return (
        "## What it proves\n\n"
        + "\n".join(lines)
        + "\n- The whole path, tokenizer to release, ran from one recipe; every number above was written by the run.\n"
    )


def _limits(run: Run) -> str:
    total = count_parameters(run.recipe.config).total
    tokens = sum(
        len(read_jsonl(run.folder / stage / "metrics.jsonl")) * getattr(run.recipe, stage).tokens_per_step
        for stage in ("pretrain", "anneal")
    )
    ratio = tokens / total
    return (
        "## What it cannot do\n\n"
        "- It is a base model: it continues text. It was not taught to follow instructions, to be truthful or safe.\n"
        f"- It has {format_count(total)} parameters and saw {format_count(tokens)} tokens here, {ratio:.1f} a parameter"
        + (" (below the 20 of the Chinchilla line)" if ratio < 20 else "")
        + ": it knows few facts and gets arithmetic wrong; read the sampled outputs.\n"
        f"- It knows the text of its sources, and little else. It was never trained beyond "
        f"{run.recipe.config.max_sequence_length} tokens.\n"
    )
