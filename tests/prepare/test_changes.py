"""The list of what a data set gained and lost."""

from segtrain.prepare.changes import Changes


def test_no_cell_of_the_list_is_a_formula() -> None:
    changes = Changes(added=["=1+1"], regrouped={"@a": ("-x", "y")})
    assert changes.to_csv().decode().splitlines()[1:] == ["'=1+1,added,,", "'@a,kept its group,'-x,y"]
