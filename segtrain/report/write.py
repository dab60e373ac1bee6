"""Writing the page of a run or of a sweep."""

from segtrain.errors import UserError
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.trials import read_sweep
from segtrain.storage.files import Storage, join

REPORT_NAME = "report.html"


def write_report(folder: str, storage: Storage, out: str | None = None) -> str:
    """Write the page of the run or sweep in `folder`, to `report.html` in it where `out` is not given.

    Returns the page's URL.

    It reads the folder alone, and what is not there yet is said on the page, so it works while the run goes on too.
    Raises UserError for a folder that holds neither, or files that this segtrain has not written.
    """
    # Launching imports this module, and processes that only train need not wait half a second for plotly.
    from segtrain.report.folders import read_run, read_sweep_folder
    from segtrain.report.run_page import render as render_run
    from segtrain.report.sweep_page import render as render_sweep

    folder = folder.rstrip("/") or folder
    sweep = read_sweep(folder, storage)
    if sweep is not None:
        html = render_sweep(read_sweep_folder(folder, sweep, storage))
    else:
        run = read_run(folder, storage)
        if run is None:
            raise UserError(f"{folder} holds neither a run nor a sweep{_near(folder, storage)}")
        html = render_run(run)
    url = out or join(folder, REPORT_NAME)
    storage.write_bytes(url, html.encode())
    if out is None:
        storage.remove_leftovers(folder)
    return url


def _near(folder: str, storage: Storage) -> str:
    """What may have been meant."""
    inside = [name for name in storage.list(folder) if storage.exists(RunFolder(join(folder, name)).metrics_log)]
    if inside:
        return f", but runs: give one of them, such as {join(folder, inside[0])}"
    return "; give the folder <run.storage>/<run.name> of one"
