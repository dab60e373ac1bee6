"""How a data set differs from the one before it in the same place, in lines and as a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from segtrain.storage.csv_cells import csv_bytes

CHANGES_NAME = "changes.csv"
SHOWN = 20


@dataclass(frozen=True)
class Changes:
    """Ids, sorted."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """With another image or mask than before."""
    kept: list[str] = field(default_factory=list)
    """Which the source does not have."""
    removed: list[str] = field(default_factory=list)
    """Which the source does not have either."""
    regrouped: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Id -> (group in the set, which it keeps; group by the source), where these differ."""

    @property
    def is_long(self) -> bool:
        """Whether `lines` leaves some of them to the file."""
        return any(len(ids) > SHOWN for ids in (self.added, self.changed, self.kept, self.removed, self.regrouped))

    def lines(self, url: str) -> list[str]:
        """A line for each kind of change, and one that names `url` where the list is too long for them."""
        said = [
            (self.added, "new", ""),
            (self.changed, "replaced", ", whose image or mask is another now"),
            (self.kept, "kept", ", which the source does not have (prepare.remove=true drops them)"),
            (self.removed, "removed", ", which the source does not have"),
            (sorted(self.regrouped), "keep their groups and folds", ", which the source would group otherwise now"),
        ]
        lines = [
            f"{len(ids)} picture{'s' * (len(ids) > 1)} {verb}{why}: {_shown(ids)}" for ids, verb, why in said if ids
        ]
        return [*lines, f"all of them are in {url}"] if self.is_long else lines

    def to_csv(self) -> bytes:
        """`id,change,group,group_by_source`; the groups only of those that the source would group otherwise."""
        changes = ("added", "changed", "kept", "removed")
        rows = [(id, change, "", "") for change in changes for id in getattr(self, change)]
        rows += [(id, "kept its group", *groups) for id, groups in sorted(self.regrouped.items())]
        return csv_bytes(("id", "change", "group", "group_by_source"), rows)


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more
