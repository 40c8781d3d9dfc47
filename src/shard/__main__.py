"""`python -m shard`: the same as the command `shard`."""

from shard.cli import main

main()
