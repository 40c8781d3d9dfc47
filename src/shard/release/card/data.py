"""The card's table of sources, and what was left out of them."""

from shard.data import documents, shards
from shard.release.card.facts import TRAINING, Facts, read_table
from shard.release.card.markdown import bullets, table
from shard.units import format_count, format_size

COLUMNS = [
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


def data_section(facts: Facts) -> str:
    """Sources with their licences, sizes and shares of each stage."""
    run, rows = facts.run, []
    for name, source in run.recipe.sources.items():
        ledger, tokens = read_table(run.data / name / documents.LEDGER), read_table(run.data / name / shards.LEDGER)
        if not ledger or not tokens:
            continue
        mixes = [facts.stages[stage].settings.mix for stage in TRAINING]
        rows.append(
            [
                name,
                source.kind,
                ledger["license"],
                f"{ledger['documents']['train']:,}",
                format_size(ledger["bytes"]["train"]),
                format_count(tokens["tokens"]),
                f"{tokens['bytes_per_token']:.2f}",
                *(f"{100 * mix.get(name, 0) / sum(mix.values()):.1f}%" for mix in mixes),
                format_size(ledger["bytes"]["heldout"]),
            ]
        )
    return (
        "## Data\n\n" + table(COLUMNS, rows) + "\nHeld-out documents were set aside before anything was trained, the "
        "tokenizer included.\n\n" + bullets(_left_out(facts))
    )


def _left_out(facts: Facts) -> list[str]:
    """What was dropped from the sources, and which test questions they were compared with."""
    ledgers = {name: read_table(facts.run.data / name / documents.LEDGER) for name in facts.run.recipe.sources}
    lines = []
    for name, ledger in ledgers.items():
        if ledger and ledger["dropped"]:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(ledger["dropped"].items()))
            lines.append(f"Dropped from {name}, of {ledger['documents_read']:,} documents read: {counts}.")
    checked = sorted({name for ledger in ledgers.values() if ledger for name in ledger["evaluation_sets"]})
    if checked:
        lines.append(
            "Documents that share 13 words in a row with a test question (or the whole of a shorter one, with its "
            f"choices) were dropped; compared with {', '.join(checked)}."
        )
    else:
        lines.append("The documents were not compared with any test questions.")
    return lines
