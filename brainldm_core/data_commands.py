"""What ``brainldm data list``, ``fetch``, ``verify`` and ``table`` do, once ``cli`` has read their options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifests import Manifest

SHOWN = 20  # problems that are printed


def _size(manifest: Manifest) -> str:
    """Size of what can be fetched, as far as it is known."""
    from .download import size_text

    known = sum(file.bytes or 0 for file in manifest.files)
    words = [size_text(known)] if known else []
    words += [file.about or "?" for file in manifest.files if file.bytes is None]
    return " + ".join(words) or "-"


def _source(manifest: Manifest) -> str:
    """Where a data set can be had."""
    from urllib.parse import urlsplit

    if manifest.kind == "simulated":
        return "made here"
    if manifest.torrent:
        return "torrent"
    if manifest.access == "restricted":
        return "by application"
    hosts = {str(urlsplit(entry.url).hostname): None for entry in manifest.files or manifest.source}
    return ", ".join(hosts) + (", --agree" if manifest.agreement else "")


def run_list(args: argparse.Namespace) -> None:
    """Print a line a data set."""
    from .fetch import data_folder, fetched
    from .manifests import load_manifest, manifest_names

    rows = [("name", "kind", "size", "here", "from", "licence")]
    for name in manifest_names():
        manifest = load_manifest(name)
        here = ("yes" if fetched(name) else "no") if manifest.files else "-"
        rows.append((name, manifest.kind, _size(manifest), here, _source(manifest), manifest.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n'here' looks in {data_folder()} (BRAINLDM_DATA names another folder)")


def run_fetch(args: argparse.Namespace) -> None:
    """Fetch the files of a manifest."""
    from .fetch import fetch
    from .manifests import load_manifest

    folder = fetch(args.name, args.out, args.mirror, args.agree)
    print(f"{folder}: {args.name} is there, checked against its manifest; licence: {load_manifest(args.name).licence}")


def run_verify(args: argparse.Namespace) -> int:
    """List what is wrong with fetched files; 1 if anything is."""
    from .fetch import data_folder, verify

    problems = verify(args.name, args.folder)
    for problem in problems[:SHOWN]:
        print(problem)
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more")
    if not problems:
        print(f"{args.folder or data_folder() / args.name}: nothing is wrong")
    return int(bool(problems))


def run_table(args: argparse.Namespace) -> None:
    """Make a table of participants from an export of fields."""
    from .ukbiobank import write_participants

    rows, without = write_participants(args.fields, args.out)
    print(f"{args.out}: {rows} people; {without} without an age at the imaging visit were left out")
