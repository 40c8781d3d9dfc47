"""Where every number of a card comes from: read from the files of the run again, and laid beside the card in its order.

`expected` builds, section by section and without the code that writes cards, the text of all values that a section may
show, in the order in which it shows them. `check` finds the numbers of both. What stands in a code block is code.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"(?:(?<=[ |(])[-+])?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")

WORDS = [
    "`xz -9e`",
    "xz -9e",
    "(1 + w)",
    "batch 1;",
    "13 words in a row",
    "SHA256SUMS",
    "sha256sum",
    "version 5.23 or newer",
    "8 bits a weight and a scale for each 32",
    "below the 20 of the Chinchilla line",
    *("bf16", "fp16", "fp32", "int8", "f32", "q8_0"),
]
"""Numbers that are words: names, and what no run decides."""


def numbers(text: str) -> list[str]:
    """The numbers of a text, without its code blocks and the words above."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for word in WORDS:
        text = text.replace(word, "")
    return NUMBER.findall(text)


def sections(card: str) -> dict[str, str]:
    """Heading -> text; "" is the beginning without the metadata."""
    body = card.split("\n---\n", 1)[1]
    parts = re.split(r"^## (.+)$", body, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def check(card: str, run: Path) -> None:
    """Raise AssertionError for a number of the card that is not the one in the file that it comes from."""
    found, sources = sections(card), Sources(run)
    wanted = {heading: getattr(sources, name)() for heading, name in METHODS.items()}
    assert found.keys() <= wanted.keys(), found.keys() - wanted.keys()
    for heading, text in found.items():
        assert numbers(text) == numbers("\n".join(wanted[heading])), f"## {heading}"


METHODS = {
    "": "beginning",
    "Architecture": "architecture",
    "Training": "training",
    "Data": "data",
    "Evaluation": "evaluation_",
    "Benchmark": "benchmark_",
    "Sampled outputs": "samples",
    "Files": "files",
    "How to load it": "loading",
    "What it proves": "proves",
    "What it cannot do": "cannot",
    "Licence": "licence",
    "Citation": "nothing",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    raise AssertionError


def count(number: float) -> str:
    for unit in ("", "K", "M", "B"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    assert seconds < 3600
    whole = round(seconds)
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Sources:
    """The files of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.recipe = tomllib.loads((run / "recipe.toml").read_text())
        self.manifest = read(run / "manifest.json")
        self.evaluation, self.benchmark = read(run / "evaluation.json"), read(run / "benchmark.json")
        self.stages = {name: lines(run / name / "metrics.jsonl") for name in ("pretrain", "anneal")}
        self.events = {name: lines(run / name / "events.jsonl") for name in ("pretrain", "anneal")}
        self.shape = self.recipe["model"]
        d, f, n = self.shape["hidden_size"], self.shape["intermediate_size"], self.shape["num_layers"]
        width, v = self.shape["num_heads"] * self.shape["head_dim"], self.shape["vocab_size"]
        self.matrix, self.table = n * (4 * d * width + 3 * d * f), v * d
        self.parameters = self.matrix + self.table + (2 * n + 1) * d
        # "LG" over the layers, and the last is global.
        self.layers = "".join("LG"[i % 2] for i in range(n - 1)) + "G"

    def tokens(self, name: str) -> int:
        return len(self.stages[name]) * int(self.recipe[name]["tokens_per_step"])

    def seconds(self, name: str) -> float:
        return float(sum(line["timing"]["seconds"] for line in self.stages[name]))

    def flops(self, name: str) -> int:
        length = self.recipe[name]["sequence_length"]
        span = sum(min(self.shape["sliding_window"], length) if kind == "L" else length for kind in self.layers)
        width = self.shape["num_heads"] * self.shape["head_dim"]
        return self.tokens(name) * (6 * (self.matrix + self.table) + 12 * width * span)

    def tasks(self) -> dict[str, Any]:
        return {name: task["results"] for name, task in self.evaluation.get("tasks", {}).items() if "results" in task}

    def not_measured(self) -> dict[str, str]:
        tasks = self.evaluation.get("tasks", {})
        return {name: task["not_measured"] for name, task in tasks.items() if "not_measured" in task}

    def nothing(self) -> list[str]:
        return []

    def beginning(self) -> list[str]:
        return [self.recipe["release"].get("title", self.recipe["name"]), self.recipe["description"]]

    def licence(self) -> list[str]:
        return [self.recipe["release"]["license"]]

    def architecture(self) -> list[str]:
        s = {"rope_theta": 10000, "logit_cap": 30, "norm_eps": 1e-6} | self.shape
        heads, cap = f"{s['num_heads']} {s['head_dim']}", f"{s['logit_cap']:g}"
        return [
            f"{self.parameters:,}",
            f"{s['num_layers']} {s['sliding_window']}",
            f"{s['hidden_size']} {s['intermediate_size']}",
            heads,
            f"{s['vocab_size']}",
            f"{s['rope_theta']:g} {s['max_sequence_length']}",
            f"{cap} {cap}",
            f"{s['norm_eps']:g}",
        ]

    def training(self) -> list[str]:
        found, p, a = [], self.recipe["pretrain"], self.recipe["anneal"]
        for name, steps in self.stages.items():
            seconds = self.seconds(name)
            loss = next(line["cross_entropy_nats"] for line in reversed(steps) if "skipped" not in line)
            found += [
                f"{steps[-1]['step']:,} {self.recipe[name]['steps']:,} {self.recipe[name]['sequence_length']:,}",
                f"{count(self.tokens(name))} {loss:.4f} {duration(seconds)} {self.tokens(name) / seconds:,.0f}",
                f"{self.flops(name):.3g}",
            ]
        found.append(f"{p['lr_muon']:g} {p['lr_embedding']:g} {p['lr_norm']:g} {p['weight_decay']:g} {p['z_loss']:g}")
        found.append(f"{p['warmup_steps']} {a['decay_steps']}")
        for name, events in self.events.items():
            kinds = [event["event"] for event in events]
            found.append(f"{kinds.count('sentinel')} {kinds.count('rank_loss')}")
            skipped = [line["step"] for line in self.stages[name] if "skipped" in line]
            if skipped:
                shown = " ".join(f"{step:,}" for step in skipped)
                found.append(f"{len(skipped)} {len(self.stages[name]):,} {shown}")
            if kinds.count("start") > 1:
                found.append(f"{kinds.count('start')}")
        found += self.compute()
        environment = self.manifest["stages"]["pretrain"]["environment"]
        versions = environment["versions"]
        found += [environment["device"], versions["torch"], versions["shard"], environment["code_revision"] or ""]
        return found

    def compute(self) -> list[str]:
        hours = {
            name: max(self.manifest["stages"][name]["seconds"], self.seconds(name) if name in self.stages else 0) / 3600
            for name in ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench")
        }
        total, release = sum(hours.values()), self.recipe["release"]
        found = [
            f"{self.flops('pretrain') + self.flops('anneal'):.3g} {hours['pretrain'] + hours['anneal']:.3g} {total:.3g}"
        ]
        if price := release.get("price_per_hour"):
            found.append(f"{total * price:.3g} {price:g}")
        if watts := release.get("watts"):
            found.append(f"{total * watts / 1000:.3g} {watts:g}")
        return found

    def data(self) -> list[str]:
        found, dropped = [], []
        for name, source in self.recipe["sources"].items():
            ledger, tokens = (read(self.run / "data" / name / file) for file in ("documents.json", "tokens.json"))
            shares = [100 * m[name] / sum(m.values()) for m in (self.recipe[s]["mix"] for s in self.stages)]
            found += [
                f"{name} {source['kind']} {ledger['license']} {ledger['documents']['train']:,}",
                f"{size(ledger['bytes']['train'])} {count(tokens['tokens'])} {tokens['bytes_per_token']:.2f}",
                f"{shares[0]:.1f} {shares[1]:.1f} {size(ledger['bytes']['heldout'])}",
            ]
            if ledger["dropped"]:
                reasons = " ".join(f"{n:,} {reason}" for reason, n in sorted(ledger["dropped"].items()))
                dropped.append(f"{name} {ledger['documents_read']:,} {reasons}")
        checked = {
            name
            for s in self.recipe["sources"]
            for name in read(self.run / "data" / s / "documents.json")["evaluation_sets"]
        }
        return [*found, *dropped, *sorted(checked)]

    def evaluation_(self) -> list[str]:
        e = self.evaluation
        found = [
            f"{name} {s['bytes']:,} {s['bits_per_byte']:.4f} {s['xz_bits_per_byte']:.4f} {s['cross_entropy_nats']:.4f}"
            for name, s in e["sources"].items()
        ]
        found.append(f"{e['context']} {e['stride']}")
        for name, results in self.tasks().items():
            for i, r in enumerate(results):
                values = f"{r['value']:.4f} {r['standard_error']:.4f} {r['chance']:.4g} {r['items']:,}"
                found.append(f"{name if i == 0 else ''} {r['metric']} | {values}")
        return [*found, *(f"{name} {reason}" for name, reason in self.not_measured().items())]

    def benchmark_(self) -> list[str]:
        b = self.benchmark

        def spread(v: dict[str, float], factor: float = 1, digits: int = 0) -> str:
            return " ".join(f"{v[key] * factor:,.{digits}f}" for key in ("median", "min", "max"))

        found = [b["device"], b["versions"]["torch"]]
        for r in b["inference"].values():
            found += [
                spread(r["decode_tokens_per_second"]),
                spread(r["time_to_first_token_seconds"], 1000, 1),
                spread(r["prefill_tokens_per_second"]),
                size(r["footprint_bytes"]),
            ]
            if memory := r.get("peak_memory_above_weights_bytes"):
                found.append(size(memory["median"]))
        found += [spread(speed) for speed in b["training_tokens_per_second"].values()]
        if loop := b.get("published_loop_tokens_per_second"):
            found.append(spread(loop))
        if int8 := b.get("int8"):
            found.append(size(int8["bytes_per_source"]))
            for name, s in int8["sources"].items():
                found.append(f"{name} {s['fp32_bits_per_byte']:.4f} {s['int8_bits_per_byte']:.4f}")
                found.append(f" {s['change_percent']:+.3f}")
        return found

    def samples(self) -> list[str]:
        how = self.evaluation["sampling"]
        found = [f"{how['temperature']} {how['top_p']} {how['seed']} {how['max_tokens']}"]
        for sample in self.evaluation["samples"]:
            found += [f"`{sample['prompt']}`", f"`{sample['text'].removeprefix(sample['prompt'])}`"]
        return found

    def files(self) -> list[str]:
        bundle, name = self.run / "release", self.recipe["name"]
        paths = ["models/model.pt", "models/pretrain.pt", "models/tokenizer.json", "recipe.toml"]
        paths += sorted(f"gguf/{name}-{dtype}.gguf" for dtype in self.recipe["release"]["gguf"])
        return [f"{path} {size((bundle / path).stat().st_size)}" for path in paths]

    def loading(self) -> list[str]:
        return ["30 30"] if self.recipe["release"]["gguf"] else []

    def proves(self) -> list[str]:
        return [f"{r['value']:.4f} {r['chance']:.4g}" for _, r in self.shares() if self.is_able(r)]

    def shares(self) -> list[tuple[str, Any]]:
        names = ("arc_easy_cloze", "arc_easy_letters", "arc_challenge_cloze", "arc_challenge_letters")
        wanted = (*names, "arithmetic", "passkey", "code")
        return [(name, results[0]) for name, results in self.tasks().items() if name in wanted]

    @staticmethod
    def is_able(result: Any) -> bool:
        return bool(result["value"] - 2 * result["standard_error"] > result["chance"])

    def cannot(self) -> list[str]:
        tokens, tasks = self.tokens("pretrain") + self.tokens("anneal"), self.tasks()
        found = [f"{count(self.parameters)} {count(tokens)} {tokens / self.parameters:.2g}"]
        if arithmetic := tasks.get("arithmetic"):
            items = arithmetic[0]["items"]
            found.append(f"{round(items * arithmetic[0]['value']):,} {items:,}")
        for name, r in self.shares():
            if name.startswith("arc") and not self.is_able(r):
                found.append(f"{name} {r['value']:.4f} {r['chance']:.4g}")
        if code := tasks.get("code"):
            value = code[0]["value"]
            found.append(f"{1 - value:.0%}" if self.is_able(code[0]) else f"{value:.4f} {code[0]['chance']:.4g}")
        exact = {int(r["metric"].split()[2]): r["value"] for r in tasks.get("passkey", []) if "exact" in r["metric"]}
        fails = [length for length in sorted(exact) if exact[length] < 0.5][:1]
        works = [length for length in sorted(exact) if not fails or length < fails[0]]
        found += [f"{length:,}" for length in works[-1:]] + [f"{length:,} {exact[length]:.4f}" for length in fails]
        if position := tasks.get("position"):
            before, last = position[-2:]
            if last["value"] > before["value"]:
                found.append(f"{last['value']:.4f} {last['metric']} {before['value']:.4f}")
        longest = max(self.recipe[name]["sequence_length"] for name in self.stages)
        return [*found, *self.not_measured(), f"{longest}"]
