"""The card's account of the model's shape and of its training: steps, tokens, compute, cost, what went wrong."""

from typing import Any

from shard.release.card.facts import TRAINING, Facts, StageFacts
from shard.release.card.markdown import bullets, picture, table
from shard.run import stages_of
from shard.training.cost import count_parameters
from shard.units import format_count, format_duration

COLUMNS = ["stage", "steps", "sequence", "tokens", "last loss (nats)", "time", "tokens/s", "FLOPs"]


def architecture_section(facts: Facts) -> str:
    """The shape of the model."""
    c = facts.run.recipe.config
    rows = [
        ["Parameters", f"{count_parameters(c).total:,}"],
        *([["Parameters that compute a token", f"{count_parameters(c).active:,}"]] if c.moe is not None else []),
        ["Layers", f"{c.num_layers} ({c.layer_types}: L = local, window {c.sliding_window}; G = global)"],
        ["Hidden size, feed-forward", f"{c.hidden_size}, SwiGLU {c.intermediate_size}"],
        ["Heads", f"{c.num_heads} of {c.head_dim}"],
        ["Vocabulary", f"{c.vocab_size} (byte-level BPE, tied embeddings)"],
        ["Positions", f"RoPE, theta {c.rope_theta:g}, context {c.max_sequence_length}"],
        ["Logit cap", f"{c.logit_cap:g} * tanh(x / {c.logit_cap:g})"],
        ["Norms", f"RMSNorm before attention, feed-forward and head (1 + w), eps {c.norm_eps:g}"],
    ]
    return "## Architecture\n\n" + table(["", ""], rows)


def training_section(facts: Facts) -> str:
    """Both stages, with what the sentinel and the guard saw."""
    stages = [facts.stages[name] for name in TRAINING]
    notes = [note for stage in stages for note in _notes(stage)] + _compute(facts)
    p, a = facts.run.recipe.pretrain, facts.run.recipe.anneal
    return (
        "## Training\n\n"
        + table(COLUMNS, [_row(facts, stage) for stage in stages if stage.lines])
        + picture(facts.bundle, "loss", "Training loss by step")
        + picture(facts.bundle, "learning_rate", "Learning rates by step")
        + f"\nMuon ({p.muon_method}) for hidden matrices at {p.lr_muon:g}, AdamW for the table at {p.lr_embedding:g} "
        f"and for norms at {p.lr_norm:g}; weight decay {p.weight_decay:g}; z-loss {p.z_loss:g}. Warm-up over "
        f"{p.warmup_steps} steps, then constant; the anneal decays over {a.decay_steps} steps ({a.decay_shape}).\n\n"
        + bullets(notes)
        + picture(facts.bundle, "sentinel", "Sentinel: singular values that were lost, by matrix and step")
        + _environment(stages)
    )


def _row(facts: Facts, stage: StageFacts) -> list[str]:
    last_loss = next((line["cross_entropy_nats"] for line in reversed(stage.lines) if "skipped" not in line), None)
    return [
        stage.name,
        f"{stage.step:,} of {stage.settings.steps:,}",
        f"{stage.settings.sequence_length:,}",
        format_count(stage.tokens),
        "none" if last_loss is None else f"{last_loss:.4f}",
        format_duration(stage.seconds),
        f"{stage.tokens / stage.seconds:,.0f}",
        f"{facts.flops(stage):.3g}",
    ]


def _notes(stage: StageFacts) -> list[str]:
    if stage.was_imported:
        result = stage.entry["result"]
        if result.get("optimizer") == "fresh":
            return ["The weights were imported from a Hugging Face export; what trained them is not recorded here."]
        return [f"The pretraining was imported from another bundle at step {result['step']}."]
    if not stage.lines:
        return []
    notes = []
    if stage.step < stage.settings.steps:
        notes.append(f"{stage.name} was stopped at step {stage.step} of {stage.settings.steps}.")
    looks = sum(event["event"] == "sentinel" for event in stage.events)
    flagged = sum(event["event"] == "rank_loss" for event in stage.events)
    notes.append(f"Sentinel, {stage.name}: {looks} looks at the singular values, {flagged} with rank loss flagged.")
    notes.append(_skipped(stage.name, stage.lines, stage.entry.get("result", {}).get("rollbacks", [])))
    if (starts := sum(event["event"] == "start" for event in stage.events)) > 1:
        notes.append(f"{stage.name} was started {starts} times and went on from its last checkpoint.")
    return notes


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


def device_hours(facts: Facts) -> tuple[float, float]:
    """(hours of training, hours of all stages before the release). manifest.json lacks the time of a process that was
    killed, so that a stage takes at least as long as its steps.
    """
    hours = {}
    stages = stages_of(facts.run.recipe)
    for name in stages[: stages.index("release")]:
        recorded = float(facts.manifest["stages"].get(name, {}).get("seconds", 0))
        steps = facts.stages[name].seconds if name in facts.stages else 0.0
        hours[name] = max(recorded, steps) / 3600
    return sum(hours[name] for name in TRAINING), sum(hours.values())


def _compute(facts: Facts) -> list[str]:
    """What it took, and what that cost where the recipe gives a price or a power."""
    release = facts.run.recipe.release
    training, total = device_hours(facts)
    flops = sum(facts.flops(stage) for stage in facts.stages.values())
    notes = [
        f"Compute: {flops:.3g} FLOPs of training, by arithmetic; {training:.3g} device hours of training, "
        f"{total:.3g} with data, evaluation and benchmark."
    ]
    if release.price_per_hour is not None:
        price = release.price_per_hour
        notes.append(f"Cost: {total * price:.3g} {release.currency}, at {price:g} {release.currency} an hour.")
    if release.watts is not None:
        notes.append(
            f"Energy: {total * release.watts / 1000:.3g} kWh, at {release.watts:g} W, which the recipe says and nobody "
            "measured."
        )
    return notes


def _environment(stages: list[StageFacts]) -> str:
    environment = next((stage.entry["environment"] for stage in stages if stage.entry.get("environment")), None)
    if environment is None:
        return ""
    versions = environment.get("versions", {})
    return (
        f"\nTrained on {environment.get('device', 'an unrecorded device')} with torch {versions.get('torch')}, "
        f"Shard {versions.get('shard')} ({environment.get('code_revision') or 'installed package'}).\n"
    )
