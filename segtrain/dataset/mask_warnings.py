"""Masks that make scores say little: those without any object, and those that are all object.

A picture without an object scores a dice of 1 where nothing is found; so does a network that finds nothing, in a fold
of such pictures. The sentences are shown when a set is prepared, when a run starts, and in reports.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SHOWN_IDS = 3
MOST = 0.5
"""In a fold with a greater share of such masks, scores are about them."""


def cautions(foreground: Sequence[float], folds: Sequence[int], ids: Sequence[str] = ()) -> list[str]:
    """Sentences about labelled pictures, from their shares of object pixels and their folds; none where all is well."""
    shares, numbers = np.asarray(foreground, np.float64), np.asarray(folds)
    if not shares.size:
        return []
    lines = []
    for what, is_so, means in (
        ("no object", shares == 0, "a picture without an object scores 1 where nothing is found, and 0 otherwise"),
        ("nothing but object", shares == 1, "a network that finds objects everywhere scores 1 on them"),
    ):
        count = int(is_so.sum())
        if count == shares.size:
            lines.append(f"warning: all {count} masks have {what}; a dice of 1 says nothing: see to the masks")
        elif count:
            shown = [ids[at] for at in np.flatnonzero(is_so)[:SHOWN_IDS]] if len(ids) else []
            named = f" ({', '.join(shown)}{', ...' * (count > len(shown))})" if shown else ""
            lines.append(f"warning: {count} of {shares.size} masks have {what}{named}: {means}")
            lines += _of_folds(what, is_so, numbers)
    return lines


def _of_folds(what: str, is_so: np.ndarray, folds: np.ndarray) -> Iterator[str]:
    """A sentence for each fold where most masks are of this kind."""
    for fold in np.unique(folds):
        part = is_so[folds == fold]
        if part.mean() > MOST:
            yield (
                f"warning: in fold {fold} {int(part.sum())} of {part.size} masks have {what}; "
                "its scores say little of how well objects are found"
            )
