"""Windows: every training target once, in order, of one user each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adarec.data.windows import cut_windows


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), held_out=st.integers(0, 2), longest=st.integers(1, 9)
)
def test_windows_hold_each_target_once_and_no_other_users_items(lengths, held_out, longest):
    users = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    from_end = np.concatenate([np.arange(length)[::-1] for length in lengths])
    # The first item of a user is no target, nor are the last ones, which are held out.
    targets = np.flatnonzero((position > 0) & (from_end >= held_out))
    windows = cut_windows(targets, users[targets], longest)
    covered = [
        start + 1 + step
        for start, length in zip(windows.start.tolist(), windows.length.tolist(), strict=True)
        for step in range(length)
    ]
    assert covered == targets.tolist()
    assert all(1 <= length <= longest for length in windows.length.tolist())
    for start, length, user in zip(*(field.tolist() for field in windows), strict=True):
        assert set(users[start : start + length + 1]) == {user}
    # Cut from the end of a history: all windows of a user but the first are full.
    for user in set(windows.user.tolist()):
        of_user = windows.length[windows.user == user].tolist()
        assert all(length == longest for length in of_user[1:])
