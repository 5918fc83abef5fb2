"""Report what a model directory holds: files, sizes, hashes, keys, device and memory.

Exit code 6 if it cannot be loaded.
"""

from __future__ import annotations

import argparse
import json

from indextts2.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR|NAME", help="model directory, or the name of an installed model")
    parser.add_argument("--hash", action="store_true", help="compute the SHA-256 of every file (slow for full models)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options.add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    from indextts2.checkpoints.check import check
    from indextts2.errors import CheckpointError

    report = check(args.directory, hash_files=args.hash, device=options.device(args), dtype=args.dtype)
    print(json.dumps(report.to_dict()) if args.json else report.to_text())
    return 0 if report.ok else CheckpointError.exit_code
