"""From the results of a suite to its leaderboard: rows, comparisons within a protocol, notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.errors import UserError, did_you_mean
from harness.store import Entry, SuiteResults
from reports import comparison, evidence, pareto, provenance
from reports.cells import build_cell, build_costs, score
from reports.columns import CHOSEN_ON_TEST, count, listed, percent
from reports.comparison import OVERALL, Comparison, RowKey, Standing
from reports.leaderboard import Counts, Leaderboard, Row
from reports.statistics import average_per_repeat, overall, possible
from reports.troubles import troubles
from reports.versus import Versus, choose, versus

HOW_TO_READ = (
    "Each {title} is the mean over n seeds (folds, where a dataset comes in folds) of the {meaning}, in percent, ± the "
    "sample standard deviation, with the 95 % interval of that mean. Bold: the best mean of a protocol and, marked ≈, "
    "all that are not separated from it."
)
CAVEATS = (
    "Separated means: the 95 % t-interval of the paired differences (same dataset, same seeds) excludes "
    "zero. The intervals are not corrected for the number of comparisons.",
    "Intervals over seeds are Student's t; a single seed's share of correct items has Wilson's interval from correct / "
    "total instead. Intervals over seeds speak of other training runs, not of other test items.",
    "Overall is the mean over datasets of a method's means, for methods that have all of them; its spread "
    "and interval come from the seeds (or folds) that have all datasets.",
)
FLAT = "An interval without width says that all seeds gave the same score, not that the score is certain."
MOST_IMPOSSIBLE = 5
"""Trials that a notice names one by one."""

Protocols = tuple[provenance.Protocol, ...]
Grouped = Mapping[RowKey, Sequence[Entry]]
Followed = Mapping[tuple[RowKey, str], Protocols]


def leaderboard(results: SuiteResults) -> Leaderboard:
    """All that the reports of a suite say, from its results alone; the order of entries does not matter.

    Worked out once for all reports of the same results.
    """
    if "leaderboard" not in results.worked_out:
        results.worked_out["leaderboard"] = _leaderboard(results)
    board: Leaderboard = results.worked_out["leaderboard"]
    return board


def _leaderboard(results: SuiteResults) -> Leaderboard:
    entries = sorted(results.entries, key=_order)
    datasets = tuple(sorted({entry.dataset for entry in entries}))
    grouped = rows_of(entries)
    followed = _followed(grouped, datasets)
    numbers = {dataset: _numbered_protocols(grouped, followed, dataset) for dataset in datasets}
    board = Leaderboard(
        name=results.name,
        description=results.description,
        digest=results.digest,
        counts=_counts(entries),
        datasets=datasets,
        several_backbones=len({entry.backbone for entry in entries}) > 1,
        rows=_rows(grouped, datasets, followed, numbers),
        comparisons=(),
        notices=(),
        findings=(),
        how_to_read="",
        caveats=CAVEATS,
        troubles=troubles(grouped, datasets),
        protocol=_protocol_sentences(grouped, followed, datasets),
        environment=provenance.environment(entry.result for entry in entries if entry.result is not None),
    )
    measured = [entry.result for entry in entries if entry.result is not None and not entry.reference]
    notices = (
        *results.notices,
        *_gap_notices(board.counts),
        *_protocol_notices(board, grouped, numbers),
        *provenance.notices(measured),
        *_aside_notices(board),
        *_impossible_notices(board),
    )
    return replace(
        _compared(board),
        notices=notices,
        how_to_read=_how_to_read(board),
        versus=_versus(board, grouped, results),
    )


def _versus(board: Leaderboard, grouped: Grouped, results: SuiteResults) -> Versus | None:
    """Every method against the one asked for, or the one that trains most. Raises UserError when it is unknown."""
    methods = sorted({row.method for row in board.rows if not row.reference})
    yardstick = results.yardstick or choose(board)
    if results.yardstick is not None and results.yardstick not in methods:
        hint = did_you_mean(results.yardstick, methods)
        raise UserError(f"suite '{results.name}' has no method '{results.yardstick}' to compare with; {hint}")
    if yardstick is None or len(methods) < 2:
        return None
    known = evidence.predictions(results)
    items = {
        (key, dataset): evidence.by_run([trial for trial in trials if trial.dataset == dataset], known)
        for key, trials in (grouped.items() if known else ())
        for dataset in board.datasets
    }
    return versus(board, yardstick, items)


def _how_to_read(board: Leaderboard) -> str:
    measure = board.measure
    if measure is not None and not measure.scored:
        return "What training costs, on clouds without a shape: there are no scores, and nothing is ranked."
    if measure is not None:
        return HOW_TO_READ.format(title=measure.title, meaning=measure.meaning)
    parts = [f"on {name}, {headline.title}" for name, headline in zip(board.datasets, board.headlines, strict=True)]
    return HOW_TO_READ.format(title="number", meaning=f"headline number on the test split ({'; '.join(parts)})")


def _order(entry: Entry) -> tuple[object, ...]:
    points = provenance.section(entry.result.spec, "data").get("points") if entry.result else None
    known = points if isinstance(points, int) else 0
    fold = -1 if entry.fold is None else entry.fold
    return (entry.method, entry.backbone, entry.reference, entry.dataset, entry.seed, fold, known, entry.id)


def rows_of(entries: Iterable[Entry]) -> dict[RowKey, list[Entry]]:
    """Trials by row. Two trials of one label, dataset and seed (a baseline at several points) make two rows."""
    rows: dict[RowKey, dict[tuple[str, int, int | None], Entry]] = {}
    for entry in sorted(entries, key=_order):
        place, variant = (entry.dataset, entry.seed, entry.fold), 0
        while True:
            row = rows.setdefault(RowKey(entry.method, entry.backbone, variant), {})
            if row.setdefault(place, entry).id == entry.id:
                break
            variant += 1
    return {key: list(row.values()) for key, row in rows.items()}


def _followed(grouped: Grouped, datasets: Sequence[str]) -> Followed:
    """By row and dataset, of the trials that have a number: what others would have been compared by does not matter."""
    found: dict[tuple[RowKey, str], set[provenance.Protocol]] = {(k, d): set() for k in grouped for d in datasets}
    for key, trials in grouped.items():
        for trial in trials:
            if trial.result is not None and score(trial) is not None:
                found[key, trial.dataset].add(provenance.protocol_of(trial.result))
    return {place: tuple(sorted(protocols)) for place, protocols in found.items()}


def _numbered_protocols(grouped: Grouped, followed: Followed, dataset: str) -> dict[Protocols, int]:
    """The protocols that the methods follow on a dataset, numbered from the most common (0) on."""
    counted = Counter(followed[key, dataset] for key, trials in grouped.items() if not trials[0].reference)
    counted.pop((), None)
    return {p: number for number, p in enumerate(sorted(counted, key=lambda p: (-counted[p], p)))}


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _rows(
    grouped: Grouped, datasets: Sequence[str], followed: Followed, numbers: Mapping[str, Mapping[Protocols, int]]
) -> tuple[Row, ...]:
    """All rows: methods by section, then references; the best overall mean first, then by name."""
    placed = {
        key: tuple(numbers[d].get(followed[key, d], 0) if not trials[0].reference else 0 for d in datasets)
        for key, trials in grouped.items()
    }
    sections = sorted(set(placed.values()))
    rows = []
    for key, trials in grouped.items():
        own = {d: _letter_of(numbers[d], followed[key, d]) if not trials[0].reference else None for d in datasets}
        rows.append(_row(key, trials, own, section=sections.index(placed[key])))
    return tuple(sorted(rows, key=_rank))


def _letter_of(numbers: Mapping[Protocols, int], protocols: Protocols) -> str | None:
    """The protocol's letter where a dataset has several."""
    number = numbers.get(protocols) if len(numbers) > 1 else None
    return None if number is None else _letter(number)


def _rank(row: Row) -> tuple[object, ...]:
    means = [cell.summary.mean for cell in row.cells if cell.summary is not None]
    score = row.overall.mean if row.overall is not None else sum(means) / len(means) if means else 0.0
    return (row.reference, row.section, row.overall is None, -score, row.key)


def _row(key: RowKey, trials: Sequence[Entry], letters: Mapping[str, str | None], *, section: int) -> Row:
    """A row; `letters` are the protocols of its cells, by dataset."""
    datasets, reference = list(letters), trials[0].reference
    by_dataset: dict[str, list[Entry]] = {dataset: [] for dataset in datasets}
    for trial in trials:
        by_dataset[trial.dataset].append(trial)
    cells = [build_cell(dataset, by_dataset[dataset], protocol=letters[dataset]) for dataset in datasets]
    scores = {cell.dataset: cell.scores for cell in cells}
    alike = len({cell.metric for cell in cells}) == 1  # no mean of accuracies and mIoUs
    row = Row(
        key=key,
        method=key.method,
        backbone=key.backbone,
        reference=reference,
        section=section,
        cells=tuple(cells),
        overall=cells[0].summary if len(cells) == 1 else overall(scores, datasets) if alike else None,
        standing=None,
        costs=build_costs(trials),
        recipe="; ".join(sorted({provenance.recipe(t.result.spec) for t in trials if t.result} - {""})),
        notes=(),
    )
    return replace(row, notes=tuple(_notes(row, trials)))


def _notes(row: Row, trials: Sequence[Entry]) -> list[str]:
    """What a reader should know of one row."""
    notes = []
    points = {provenance.section(t.result.spec, "data").get("points") for t in trials if t.result} - {None}
    if row.key.variant and points:
        notes.append(f"At {listed(sorted(map(str, points)))} points per cloud.")
    trainable = {cell.dataset: cell.cost("parameters.trainable").value for cell in row.cells}
    if len({value for value in trainable.values() if value is not None}) > 1:
        shown = [f"{value:,.0f} on {dataset}" for dataset, value in trainable.items() if value is not None]
        notes.append(f"Trainable parameters differ: {listed(shown)}; the largest is shown.")
    for cell in row.cells:
        if cell.over_seeds is not None:
            sd, n = percent(cell.over_seeds.sd or 0.0), count(cell.over_seeds.n, "seed")
            notes.append(f"{cell.dataset}: the mean over folds varies by ± {sd} between {n}.")
    if row.overall is not None and any(len(cell.scores) > row.overall.n for cell in row.cells):
        units = {repeat.unit for cell in row.cells for repeat in cell.scores}
        if len(units) > 1:
            notes.append("Overall: no spread, as some datasets repeat by seed and others by fold.")
        else:
            repeats = count(row.overall.n, *units)
            notes.append(f"Overall: spread and interval from the {repeats} with all datasets.")
    return notes


def _compared(board: Leaderboard) -> Leaderboard:
    """Comparisons, standings and findings, within a dataset and protocol; references are left out."""
    comparisons: list[Comparison] = []
    findings: list[str] = []
    labels = {row.key: board.label(row) for row in board.rows}
    ranked = [row for row in board.rows if not row.reference]
    places: dict[tuple[RowKey, str], Standing] = {}

    def judge(dataset: str, where: str, means: dict[RowKey, float], scores: comparison.Scores) -> None:
        found = comparison.compare(dataset, scores)
        standing = comparison.standings(means, scores, found)
        findings.append(
            comparison.finding(where, means=means, standing=standing, comparisons=found, scores=scores, labels=labels)
        )
        comparisons.extend(found)
        places.update({(key, dataset): place for key, place in standing.items()})

    for index, dataset in enumerate(board.datasets):
        cells = {row.key: row.cells[index] for row in ranked if row.cells[index].summary is not None}
        for letter in sorted({cell.protocol for cell in cells.values()}, key=str):
            same = {key: cell for key, cell in cells.items() if cell.protocol == letter}
            means = {key: cell.summary.mean for key, cell in same.items() if cell.summary is not None}
            where = f"On {dataset}" + (f", protocol {letter}," if letter else "")
            judge(dataset, where, means, {key: cell.scores for key, cell in same.items()})
    for section in sorted({row.section for row in ranked}) if len(board.datasets) > 1 else []:
        rows = [row for row in ranked if row.section == section and row.overall is not None]
        means = {row.key: row.overall.mean for row in rows if row.overall is not None}
        scores = {
            row.key: average_per_repeat({cell.dataset: cell.scores for cell in row.cells}, board.datasets)
            for row in rows
        }
        group = f", group {section + 1}," if len({row.section for row in ranked}) > 1 else ""
        judge(OVERALL, f"On the mean of the {len(board.datasets)} datasets{group}", means, scores)

    def placed(row: Row) -> Row:
        cells = tuple(replace(cell, standing=places.get((row.key, cell.dataset))) for cell in row.cells)
        own = cells[0].standing if len(cells) == 1 else places.get((row.key, OVERALL))
        return replace(row, cells=cells, standing=own)

    flat = any(cell.summary is not None and cell.summary.sd == 0 for row in board.rows for cell in row.cells)
    caveats = (*board.caveats, FLAT if flat else "", comparison.about_p_values(comparisons))
    by, efficient = _efficient(board)
    return replace(
        board,
        rows=tuple(replace(placed(row), pareto=row.key in efficient) for row in board.rows),
        pareto_by=by,
        comparisons=tuple(comparisons),
        findings=tuple(filter(None, findings)) or (_nothing_to_say(board),),
        caveats=tuple(filter(None, caveats)),
    )


def _nothing_to_say(board: Leaderboard) -> str:
    costs_only = board.measure is not None and not board.measure.scored
    return "These trials are for what they cost." if costs_only else "No method has a result yet."


def _efficient(board: Leaderboard) -> tuple[tuple[str, ...], set[RowKey]]:
    """By what rows are held against one another, and those that no other row of their section beats in all of it.

    Memory counts where one kind of GPU measured it for all rows; no time, which a busy machine changes.
    """
    rows = [row for row in board.rows if not row.reference and row.overall is not None]
    costs = ["parameters.trainable"]
    one_gpu = len(dict(board.environment).get("GPU", ())) == 1
    if one_gpu and all(row.cost("memory.train_peak").value is not None for row in rows):
        costs.append("memory.train_peak")
    found: set[RowKey] = set()
    for section in {row.section for row in rows}:
        here = [row for row in rows if row.section == section]
        values = [[row.cost(key).value for key in costs] for row in here]
        if any(value is None for each in values for value in each):
            return (), set()
        points = [
            (-(row.overall.mean if row.overall is not None else 0.0), *(value or 0.0 for value in each))
            for row, each in zip(here, values, strict=True)
        ]
        found |= {row.key for row, efficient in zip(here, pareto.front(points), strict=True) if efficient}
    names = {"parameters.trainable": "trainable parameters", "memory.train_peak": "GPU memory"}
    return (f"the {'overall mean' if len(board.datasets) > 1 else 'mean'}", *(names[key] for key in costs)), found


def _counts(entries: Sequence[Entry]) -> Counts:
    done = sum(score(e) is not None or (e.result is not None and e.result.for_costs) for e in entries)
    missing = sum(entry.result is None for entry in entries)
    return Counts(trials=len(entries), done=done, failed=len(entries) - done - missing, missing=missing)


def _gap_notices(counts: Counts) -> list[str]:
    parts = [f"{counts.failed:,} failed"] if counts.failed else []
    parts += [f"{counts.missing:,} {'has' if counts.missing == 1 else 'have'} no result yet"] if counts.missing else []
    if not parts:
        return []
    gaps = f"Of {count(counts.trials, 'trial')}, {listed(parts)}"
    return [f"{gaps}: they are shown, lower n, and are never filled in."]


def _protocol_notices(
    board: Leaderboard, grouped: Grouped, numbers: Mapping[str, Mapping[Protocols, int]]
) -> list[str]:
    """For every dataset on which methods followed different protocols: which, and who."""
    found = []
    for index, dataset in enumerate(board.datasets):
        if len(numbers[dataset]) < 2:
            continue
        differing = provenance.differing([protocol for protocols in numbers[dataset] for protocol in protocols])
        parts = []
        for protocols, number in numbers[dataset].items():
            rows = [r for r in board.rows if not r.reference and r.cells[index].protocol == _letter(number)]
            what = " and also ".join(provenance.describe(protocol, only=differing) for protocol in protocols)
            parts.append(f"{_letter(number)} ({listed([board.label(row) for row in rows])}): {what}")
        opening = f"On {dataset} methods follow different protocols and are not ranked together."
        found.append(f"{opening} {'; '.join(parts)}.")
    return found


def _aside_notices(board: Leaderboard) -> list[str]:
    if not any(aside.key in CHOSEN_ON_TEST for aside in board.asides()):
        return []
    return [
        "Best on test is the papers' number: the best of all epochs, chosen on the test split. It is too high by an "
        "unknown amount, belongs beside published numbers only, and nothing is ranked by it."
    ]


def _impossible_notices(board: Leaderboard) -> list[str]:
    """Accuracies that no number of correct items gives: a result was changed, or is not of this test set."""
    found = [
        f"{board.label(row)} on {cell.dataset}, seed {seed.name}: an accuracy of {100 * seed.score:.4g} % cannot "
        f"occur on a test set of {seed.total:,} items."
        for row in board.rows
        for cell in row.cells
        for seed in cell.seeds
        if cell.headline.counted and seed.total and not possible(f"{100 * seed.score:.8f}", seed.total)
    ]
    more = (
        [f"{len(found) - MOST_IMPOSSIBLE:,} more trials have such an accuracy."] if len(found) > MOST_IMPOSSIBLE else []
    )
    return found[:MOST_IMPOSSIBLE] + more


def _protocol_sentences(grouped: Grouped, followed: Followed, datasets: Sequence[str]) -> tuple[str, ...]:
    """How the methods' numbers came about, datasets of one protocol together."""
    methods = [key for key, trials in grouped.items() if not trials[0].reference]
    where: dict[provenance.Protocol, list[str]] = {}
    for dataset in datasets:
        for protocol in sorted({protocol for key in methods for protocol in followed[key, dataset]}):
            where.setdefault(protocol, []).append(dataset)
    return tuple(provenance.protocol_sentence(names, protocol) for protocol, names in where.items())
