"""The data sets of `make bench-quality` as raw files and a configuration, one after another.

The simulated marketplace and Online Retail have the built-in configurations; where a tenth of the
labels is kept, the network is alone.
Data without time stands at one date: a row of the data is a user with one event (the review) or
six (the months of a statement) before it, and a labels file a role.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from models.data.tasks import ROLES
from models.scoring.scorecard import ScorecardConfig, score
from ray_jobs.config import BUILT_IN
from tests.bench.parts.goals import (
    CHINESE,
    CHINESE_TENTH,
    MULTILINGUAL,
    RETAIL,
    SIMULATED,
    TENTH,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
TO_PRETRAIN = "pretrain.parquet"
AS_OF, BEFORE = "2024-02-01", "2024-01-15"
# F1 is that of the policy's first threshold: here whether the outcome is more likely than not.
EVEN = float(score(np.array([0.5]), ScorecardConfig())[0])
Tree = dict[str, Any]


Write = Callable[[Path, int], Tree]  # raw files of about so many rows into a folder


def simulated(folder: Path, users: int) -> Tree:
    """The demo's marketplace, written by `simulate`.

    The encoder stays at rest beside the words' reader: thawed in the last epoch it gained .0004 of
    select loss (14,000 users) and made that epoch three times as long.
    """
    tree = _built_in("demo", {"demo-run": str(folder / "work")})
    tree["simulate"]["users"] = users
    tree["network"]["text"]["trainable_layers"] = 0
    return tree


def tenth(folder: Path, users: int) -> Tree:
    """The demo's marketplace, the network alone, and a tenth of the labels to learn from."""
    tree = _built_in("demo", {"demo-run": str(folder / "work")})
    tree["simulate"]["users"] = users or tree["simulate"]["users"]
    tree["sources"]["labels"]["path"] = str(folder / "labels.parquet")
    tree["split"]["schedule"] = "labels"
    tree["tasks"] = {name: tree["tasks"][name] for name in ("default", "fraud")}
    del tree["roles"]["spend"], tree["oracle"]
    tree["stack"]["experts"] = []
    # steps of half the rows, and a rate at which so few are not learned by heart in an epoch
    loop = {"epochs": 6, "frozen_epochs": 2, "batch_rows": 32, "learning_rate": 0.0015}
    tree["train"]["loop"] |= loop
    tree["pretrain"] = {"text": {"max_texts": 10_000, "epochs": 2}, "behaviour": {}}
    return tree


def keep_a_tenth(folder: Path, tree: Tree) -> None:
    """Of the labels before the calibrate role's, those of a tenth of the users."""
    labels = pl.read_parquet(folder / "work" / "raw" / "labels" / "*.parquet")
    later = pl.col("as_of") >= tree["split"]["calibrate"]["first"]
    some = pl.col("user_id").hash(1) % 10 == 0
    labels.filter(later | some).write_parquet(folder / "labels.parquet")


def online_retail(folder: Path, rows: int) -> Tree:
    """Online Retail, or customers of so many lines."""
    lines = pl.read_parquet(SHARED / "online_retail" / "onlineretail.parquet")
    if rows:
        customer = pl.col("CustomerID")
        own = lines.drop_nulls(customer).sort(customer.hash(1), customer, maintain_order=True)
        lines = lines.filter(customer.is_in(own.head(rows)["CustomerID"].implode()))
    lines.write_parquet(folder / "lines.parquet")
    tree = _built_in("online_retail", {"online-retail": str(folder / "work")})
    tree["sources"]["lines"]["path"] = str(folder / "lines.parquet")
    return tree


def _built_in(name: str, folders: dict[str, str]) -> Tree:
    text = (BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8")
    for old, new in folders.items():
        text = text.replace(old, new)
    tree: Tree = yaml.safe_load(text)
    return tree


def clothing(rating: bool) -> Write:
    """Women's Clothing with its published split; select is the published validation set."""

    def write(folder: Path, rows: int) -> Tree:
        source = SHARED / "womens_clothing"
        frame = pl.read_parquet(source / "reviews.parquet").rename({"__index_level_0__": "user"})
        role = np.where(np.arange(frame.height) % 8 == 0, "calibrate", "fit")
        frame = frame.with_columns(role=pl.Series(role))
        for name, file in (("select", "womens_val.csv"), ("test", "womens_test.csv")):
            held = pl.read_csv(source / file, columns=[0]).to_series().implode()
            now = pl.when(pl.col("user").is_in(held)).then(pl.lit(name)).otherwise("role")
            frame = frame.with_columns(role=now)
        text = pl.concat_str("Title", "Review Text", separator=". ", ignore_nulls=True)
        frame = _fewer(frame, rows).select(
            "user",
            "role",
            text=text,
            item=pl.col("Clothing ID"),
            category=pl.col("Class Name"),
            age=pl.col("Age"),
            votes=pl.col("Positive Feedback Count"),
            rating=pl.col("Rating"),
            division=pl.col("Division Name"),
            department=pl.col("Department Name"),
            class_name=pl.col("Class Name"),
            label=pl.col("Recommended IND"),
        )
        numeric = ["age", "votes", *(["rating"] if rating else [])]
        categorical = ["division", "department", "class_name"]
        tree = _tree(folder, frame, "recommended", numeric, categorical)
        tree["features"]["max_tokens"] = 128
        tree["network"] = {"text": {"layers": 4, "trainable_layers": 2}}
        tree["stack"]["experts"] = ["lightgbm", "tfidf"]
        tree["train"]["loop"]["epochs"] = 3
        return tree

    return write


def chinese(multilingual: bool) -> Write:
    """Chinese reviews: 2,000 to learn from, of which a fifth selects and calibrates; 1,000 test.

    The English encoder knows few of the characters. Either one of their own is pretrained on the
    60,000 other reviews too, of which no label is told; or an encoder of many languages is to be
    imported, of which the upper half is trained on.
    """

    def write(folder: Path, rows: int) -> Tree:
        reviews = _reviews()
        frame = _fewer(_drawn(reviews), rows)
        tree = _of_reviews(folder, frame)
        tree["stack"]["experts"] = ["lightgbm", "tfidf"]
        if multilingual:
            tree["network"] = {"text": {"trainable_layers": 6}}
            return tree
        rest = _undrawn(reviews, frame)
        return _pretrained_on(folder, tree, frame, _fewer(rest, rows))

    return write


def chinese_tenth(folder: Path, rows: int) -> Tree:
    """The same Chinese reviews, the network alone, and 18,000 more that nobody gave a label.

    Whether the encoder was pretrained on these or starts from nothing, it is trained on the labels
    for as many epochs and at the same rates.
    """
    reviews = _reviews()
    frame = _fewer(_drawn(reviews), rows)
    labelled = frame.filter(pl.col("role") != "test").height
    tree = _of_reviews(folder, frame)
    tree["stack"]["experts"] = []
    more = _undrawn(reviews, frame).sample(9 * labelled, seed=1)
    return _pretrained_on(folder, tree, frame, more)


def _reviews() -> pl.DataFrame:
    archive = SHARED / "online_shopping_10_cats" / "online_shopping_10_cats.zip"
    with zipfile.ZipFile(archive) as files:
        content = files.read(next(n for n in files.namelist() if n.endswith(".csv")))
    reviews = pl.read_csv(content).drop_nulls("review").with_row_index("user")
    return reviews.select("user", text="review", category="cat", label="label")


def _drawn(reviews: pl.DataFrame) -> pl.DataFrame:
    """Those with a label to learn from or to test."""
    role = ["test"] * 1000 + ["fit"] * 1600 + ["select"] * 200 + ["calibrate"] * 200
    return reviews.sample(3000, seed=1, shuffle=True).with_columns(role=pl.Series(role))


def _of_reviews(folder: Path, frame: pl.DataFrame) -> Tree:
    tree = _tree(folder, frame, "positive", [], [])
    tree["features"]["max_tokens"] = 96
    tree["train"]["cross_fit"] = 5
    return tree


def _undrawn(reviews: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    """The other reviews, without their labels."""
    others = reviews.filter(~pl.col("user").is_in(drawn["user"].implode()))
    return others.select("user", "category", "text")


def _pretrained_on(folder: Path, tree: Tree, drawn: pl.DataFrame, more: pl.DataFrame) -> Tree:
    """With an encoder of their own: of the drawn reviews but the test role's, and of more."""
    seen = drawn.filter(pl.col("role") != "test").select(more.columns)
    pl.concat([seen, more]).write_parquet(folder / TO_PRETRAIN)
    new = {"vocabulary": 4000, "layers": 2, "width": 192}
    text = {"new": new, "objective": "halves", "epochs": 5, "batch": 128, "learning_rate": 0.001}
    tree["pretrain"] = {"text": text, "behaviour": None}
    tree["train"]["loop"] |= {"epochs": 8, "frozen_epochs": 1, "text_learning_rate": 0.0005}
    return tree


def taiwan(fold: int) -> Write:
    """UCI credit cards, one fold of five as test; the six months of a card are its events."""

    def write(folder: Path, rows: int) -> Tree:
        path = SHARED / "uci_credit_card" / "UCI_Credit_Card.csv"
        raw = pl.read_csv(path, infer_schema_length=None)
        order = np.random.default_rng(1).permutation(raw.height) % 5
        rest = np.random.default_rng(2).random(raw.height)
        role = np.select(
            [order == fold, rest < 0.1, rest < 0.2], ["test", "select", "calibrate"], "fit"
        )
        frame = raw.with_columns(role=pl.Series(role), user=pl.col("ID")).rename(
            {"default.payment.next.month": "label"}
        )
        frame = _fewer(frame, rows)
        months = [
            frame.select(
                "user",
                time=pl.lit(f"2023-{12 - back:02}-15"),
                kind=pl.format("status_{}", pl.col(f"PAY_{0 if back == 0 else back + 1}")),
                amount=pl.col(f"PAY_AMT{back + 1}"),
            )
            for back in range(6)
        ]
        numeric = [c for c in raw.columns if c.startswith(("LIMIT", "PAY", "BILL", "AGE"))]
        categorical = ["SEX", "EDUCATION", "MARRIAGE"]
        tree = _tree(folder, frame, "default", numeric, categorical, pl.concat(months))
        tree["train"]["cross_fit"] = 3
        return tree

    return write


def _fewer(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """About so many rows, the same ones each time; all of them for 0."""
    if not rows or rows >= frame.height:
        return frame
    return frame.sample(rows, seed=1)


def _tree(
    folder: Path,
    frame: pl.DataFrame,
    task: str,
    numeric: list[str],
    categorical: list[str],
    events: pl.DataFrame | None = None,
) -> Tree:
    """Writes events, users and a labels file a role; the configuration that reads them."""
    own = {"user_id": "user", "event_time": f"'{BEFORE}'", "event_type": "'review'"}
    if events is None:
        mapped = {**own, "category": "category", "text": "text"}
        events = frame.select("user", "category", "text")
    else:
        mapped = {"user_id": "user", "event_time": "time", "event_type": "kind", "amount": "amount"}
    (folder / "labels").mkdir(parents=True)
    events.write_parquet(folder / "events.parquet")
    frame.select("user", *numeric, *categorical).write_parquet(folder / "users.parquet")
    for role in ROLES:
        labels = frame.filter(pl.col("role") == role).select("user", "label")
        labels.write_parquet(folder / "labels" / f"{role}.parquet")
    profile = {name: name for name in (*numeric, *categorical)}
    sources: Tree = {
        "events": {
            "table": "events",
            "path": str(folder / "events.parquet"),
            "currency": "XXX",
            "max_rejected_fraction": 0.2,
            "columns": mapped,
        },
        "labels": {
            "table": "labels",
            "path": str(folder / "labels" / "*.parquet"),
            "period": r"labels/(\w+)\.parquet",
            "columns": {
                "user_id": "user",
                "task": f"'{task}'",
                "as_of": f"'{AS_OF}'",
                "value": "label",
                "matured_at": f"'{AS_OF}'",
            },
        },
    }
    if profile:
        sources["users"] = {
            "table": "users",
            "path": str(folder / "users.parquet"),
            "immutable": True,
            "columns": {"user_id": "user", **profile},
        }
    return {
        "lake": str(folder / "lake"),
        "work": str(folder / "work"),
        "secret_file": str(folder / "secret"),
        "buckets": 4,
        "sources": sources,
        "profile": {"numeric": numeric, "categorical": categorical},
        "tasks": {task: {"kind": "binary"}},
        "roles": {"pd": task},
        "split": {"schedule": "given", "as_of": AS_OF},
        "policy": {"decline_below": EVEN},
        "features": {"max_texts": 1},
        "stack": {"experts": ["lightgbm"]},
        "train": {"loop": {"epochs": 4, "frozen_epochs": 2, "learning_rate": 0.002}},
    }


DATA: dict[str, Write] = {
    SIMULATED: simulated,
    RETAIL: online_retail,
    "clothing": clothing(rating=False),
    "clothing_rating": clothing(rating=True),
    CHINESE: chinese(multilingual=False),
    **{f"taiwan_{fold}": taiwan(fold) for fold in range(5)},
    TENTH: tenth,
    CHINESE_TENTH: chinese_tenth,
    MULTILINGUAL: chinese(multilingual=True),  # the last: it needs a package index
}
