"""The summary of an evaluation as tables for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from models.scoring.comparison import MODEL, ORACLE, AmountTask, BinaryTask
from models.scoring.evaluation import Evaluation
from ray_jobs.report.words import amount, count, label, metric, number, percent, signed, span

STYLES = {"better": "green", "worse": "red", "no clear difference": "yellow", "unknown": "dim"}


def summary_tables(evaluation: Evaluation) -> list[Table]:
    """Metrics by task, the model against each baseline, grades, accounts of every job.

    The bound beside the ECE is what 97.5 % of perfectly calibrated models stay below.
    Names come from configuration, so cells are `Text`: nothing in them is markup.
    """
    tables = [
        _binary(name, task)
        if isinstance(task, BinaryTask)
        else _amount(name, task, evaluation.about.currency)
        for name, task in evaluation.tasks.items()
    ]
    tables += [_differences(evaluation), _grades(evaluation)]
    if evaluation.accounts:
        tables.append(_accounts(evaluation))
    return tables


def _binary(name: str, task: BinaryTask) -> Table:
    rate = f", base rate {percent(task.contenders[0].scores.base_rate)}" if task.contenders else ""
    table = _table(
        f"{name}: {count(task.known)} known outcomes{rate}",
        ("", "AUC", "KS", "log-loss", "slope", "intercept", "ECE / bound"),
    )
    for contender in task.contenders:
        s = contender.scores
        table.add_row(
            _name(contender.name),
            _estimate(number(s.auc.value), span(s.auc)),
            Text(number(s.ks.value)),
            Text(number(s.log_loss.value, 4)),
            Text(number(s.calibration_slope.value, 2)),
            Text(number(s.calibration_intercept.value, 2)),
            Text.assemble(number(s.ece), (f" / {number(s.ece_band.high)}", "dim")),
        )
    return table


def _amount(name: str, task: AmountTask, currency: str) -> Table:
    mean = f", mean {amount(task.contenders[0].scores.mean_actual)}" if task.contenders else ""
    table = _table(
        f"{name}: {count(task.known)} known outcomes{mean} {currency}".rstrip(),
        ("", "Spearman", "RMSE", "MAE", "mean predicted", "actual / expected"),
    )
    for contender in task.contenders:
        s = contender.scores
        table.add_row(
            _name(contender.name),
            _estimate(number(s.spearman.value), span(s.spearman)),
            Text(amount(s.rmse.value)),
            Text(amount(s.mae.value)),
            Text(amount(s.mean_predicted)),
            Text(number(s.calibration_ratio.value, 2)),
        )
    return table


def _differences(evaluation: Evaluation) -> Table:
    table = _table(
        "One less another on the same users, paired bootstrap",
        ("task", "difference", "metric", "", "the first is"),
    )
    for name, task in evaluation.tasks.items():
        for d in task.differences:
            table.add_row(
                Text(name),
                Text(f"{d.of} − {d.against}"),
                Text(metric(d.metric)),
                _estimate(signed(d.difference.value), span(d.difference, "signed")),
                Text(d.verdict, style=STYLES[d.verdict]),
            )
        if task.oracle is not None:
            share = task.oracle.share
            found = _estimate(percent(share.value), span(share, "percent"))
            table.add_row(Text(name), Text(ORACLE), Text("share of lift"), found, Text(""))
        table.add_section()
    return table


def _grades(evaluation: Evaluation) -> Table:
    table = _table(
        f"{count(evaluation.users)} users by grade",
        ("grade", "users", "share", "mean PD", "default rate", "approved up to here"),
    )
    for row in evaluation.grades:
        table.add_row(
            Text(row.grade),
            Text(count(row.group.users)),
            Text(percent(row.group.share)),
            Text(percent(row.group.mean_pd, 2)),
            Text(percent(row.group.default_rate.value, 2)),
            Text(percent(row.approval_rate)),
        )
    return table


def _accounts(evaluation: Evaluation) -> Table:
    table = _table("Rows in and out of every job", ("job", "account"))
    table.columns[1].justify = "left"
    for job, account in evaluation.accounts.items():
        parts = ", ".join(f"{label(name)} {count(value)}" for name, value in account.items())
        table.add_row(Text(job), Text(parts))
    return table


def _table(title: str, headers: tuple[str, ...]) -> Table:
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for place, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if place else "left", overflow="fold")
    return table


def _name(contender: str) -> Text:
    return Text(contender, style="bold" if contender == MODEL else "")


def _estimate(value: str, interval: str) -> Text:
    return Text.assemble(value, (f" ({interval})" if interval else "", "dim"))
