"""One self-contained HTML page of what is in the folder of a run or of a sweep."""
