"""What is read of a cluster's state."""

import pytest

from segtrain.cluster import nodes

READ_ONLY = b'{"autoscaler_report": {"node_type_mapping": {"ffff00": "node_ffff00"}, "legacy": true}}'
AT_WORK = b'{"autoscaler_report": {"node_type_mapping": {"10.0.0.4": "head"}, "legacy": true}}'


@pytest.mark.parametrize(
    ("status", "is_one"),
    [(READ_ONLY, False), (AT_WORK, True), (b'{"autoscaler_report": null}', False), (b"half a", False)],
)
def test_an_autoscaler_that_can_start_nodes_is_told_from_one_that_watches(status: bytes, is_one: bool) -> None:
    assert nodes.autoscales(status) is is_one
