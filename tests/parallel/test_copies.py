"""Tensor-parallel ranks use the same dropout, so that replicated parameters stay equal."""

import pytest
from copies import apart

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_ranks")]


def test_copies_of_what_no_process_splits_stay_equal_with_dropout(tmp_path):
    assert apart(tmp_path, alike=True) == 0.0
    assert apart(tmp_path, alike=False) > 1e-5
