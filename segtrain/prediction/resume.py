"""Which pictures of a target an earlier call has finished, and which of them are to be done again. No TensorFlow.

Parts are kept true: a picture that is to be done again is first taken out of its part, and only then written anew. So
no part lists a mask that was made from another content of the picture.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from segtrain.errors import DataError, UserError, counted, some_of
from segtrain.prediction import ledger
from segtrain.prediction.outputs import Outputs
from segtrain.prediction.part_files import Part, Seen, fetched_ahead, read_part, write_part
from segtrain.prediction.tasks import Inventory, Subject, digest_of
from segtrain.storage.files import Storage

logger = logging.getLogger(__name__)

READS_AT_ONCE = 16


@dataclass
class Finished:
    """What is there already of an inventory."""

    parts: dict[str, str] = field(default_factory=dict)
    """Id -> name of the part that has it, of pictures that are finished."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of those among them that were left out."""
    again: list[str] = field(default_factory=list)
    """Ids of pictures that have changed since they were predicted."""
    unknown: list[str] = field(default_factory=list)
    """Ids of pictures of which nobody knows what they were when they were predicted."""
    incomplete: list[str] = field(default_factory=list)
    """Ids of pictures of which a file is missing, or which may not be left out any more."""
    gone: list[str] = field(default_factory=list)
    """Ids of pictures that were predicted and are not in the target any more."""


class Finisher:
    """Looks through a prediction's parts, and keeps them true."""

    def __init__(self, storage: Storage, outputs: Outputs, *, skip_unreadable: bool) -> None:
        """Pictures that an earlier call has left out count as finished where `skip_unreadable` is set."""
        self._storage = storage
        self._outputs = outputs
        self._skip_unreadable = skip_unreadable

    def tidy(self, inventory: Inventory, older: str | None = None) -> Finished:
        """What is finished. Everything else is taken out of the parts, and logged.

        Parts of format 1 do not say what their pictures were. They are believed if `older`, the fingerprint that was
        noted for all of them, is still that of the data set.
        Raises UserError, before anything is changed, where all masks are of other pictures.
        """
        found, present = Finished(), self._outputs.present(self._storage)
        believed = inventory.manifest is not None and inventory.manifest.fingerprint == older
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for name, part in fetched_ahead(self._read, ledger.parts(self._storage, self._outputs.dest)):
                known = _as_now(part, inventory) if believed and not part.seen else part
                subjects, seen = map(inventory.subjects.get, known.ids), map(known.seen.get, known.ids)
                same = zip(known.ids, pool.map(self._is_unchanged, subjects, seen), strict=True)
                unchanged = {id for id, is_unchanged in same if is_unchanged}
                kept = self._sort(inventory, name, known, unchanged, present, found)
                if kept != known or not part.ids:
                    self._write(name, kept)
        # What one part has as it is now, and another as it was, is finished.
        for ids in (found.again, found.incomplete, found.unknown):
            ids[:] = [id for id in ids if id not in found.parts]
        if found.gone and not (found.parts or found.again or found.incomplete or found.unknown):
            raise UserError(
                f"{self._outputs.dest} holds masks of other pictures ({some_of(found.gone)}) and of none of these; "
                f"give another DEST or delete it"
            )
        self._tell(found, inventory)
        return found

    def _tell(self, found: Finished, inventory: Inventory) -> None:
        stored_anew = "" if inventory.manifest is None else " or was stored anew"
        for ids, told in (
            (found.unknown, "was predicted by an older segtrain, which did not note its content, and is done again"),
            (found.again, f"changed{stored_anew} since it was predicted, and is done again"),
            (found.incomplete, "is not complete there, and is done again"),
            (found.gone, f"is no longer among the pictures; what was made of it stays in {self._outputs.dest}"),
        ):
            if ids:
                logger.warning("%s: each %s: %s", counted(len(ids), "picture"), told, some_of(ids))

    def _read(self, name: str) -> Part:
        """A part; an empty one where it is damaged, which is told."""
        url = ledger.part_url(self._outputs.dest, name)
        try:
            return read_part(self._storage, url)
        except FileNotFoundError:
            return Part(())
        except DataError:
            logger.warning("%s is damaged; its pictures are predicted again", url)
            return Part(())

    def _sort(
        self,
        inventory: Inventory,
        name: str,
        part: Part,
        unchanged: set[str],
        present: Mapping[str, set[str]],
        found: Finished,
    ) -> Part:
        """Note in `found` what becomes of each picture of a part; returns the part as it is to be."""
        drop: set[str] = set()
        seen = dict(part.seen)
        for id in part.ids:
            subject = inventory.subjects.get(id)
            if subject is None:
                found.gone.append(id)
            elif id not in found.parts and id in unchanged and self._is_complete(subject, part, present):
                found.parts[id] = name
                seen[id] = seen[id]._replace(mark=subject.mark)
            else:
                drop.add(id)
                if id not in found.parts:
                    changed = found.again if part.seen else found.unknown
                    (found.incomplete if id in unchanged else changed).append(id)
        found.unreadable |= {id: why for id, why in part.unreadable.items() if found.parts.get(id) == name}
        return replace(part, seen=seen).without(drop) if drop else replace(part, seen=seen)

    def _is_unchanged(self, subject: Subject | None, seen: Seen | None) -> bool:
        """Whether a picture is what it was. A file with another mark is read and compared."""
        if subject is None or seen is None or seen.file != subject.file:
            return False
        if seen.mark == subject.mark or not (subject.url and seen.digest):
            return seen.mark == subject.mark
        try:
            return digest_of(self._storage.read_bytes(subject.url)) == seen.digest
        except FileNotFoundError:
            return False

    def _is_complete(self, subject: Subject, part: Part, present: Mapping[str, set[str]]) -> bool:
        if subject.id in part.unreadable:
            return self._skip_unreadable
        return all(name in present[folder] for folder, name in self._outputs.names(subject.file))

    def _write(self, name: str, part: Part) -> None:
        url = ledger.part_url(self._outputs.dest, name)
        if part.ids:
            write_part(self._storage, url, part)
        else:
            self._storage.delete(url)


def _as_now(part: Part, inventory: Inventory) -> Part:
    """A part that does not say what its pictures were, of pictures that are known to be still the same."""
    known = inventory.subjects
    return replace(part, seen={id: Seen(known[id].mark, "", known[id].file) for id in part.ids if id in known})
