"""How long is trained where the user gives no epochs: the more targets an epoch has, the fewer epochs."""

from __future__ import annotations

_LARGE = 280_000  # targets of an epoch above which all stages have fewer epochs, and a mean the fewest members
_LARGE_POWER = 1.5  # so that data of MovieLens-1M's size, 3.5 times as many, is done in 40 minutes
_EPOCHS, _TARGETS_OF_AN_EPOCH = (8, 24), 11_000  # of a teacher: one for each 11,000 targets of one, within these bounds
_TRIAL_SHARE = 1 / 8  # of a teacher's epochs, after which the poor ones of several are dropped
_CANDIDATE_TARGETS = 100_000  # with more of them in an epoch, architectures are compared after fewer epochs
_MEMBERS, _TARGETS_OF_A_MEMBER = (3, 5), 25_000  # a member for each 25,000 targets of an epoch, within these bounds ...
_MOST_TARGETS_OF_MEMBERS = 32_000_000  # ... and no more than are trained with so many targets


def stage_epochs(epochs: int, targets: int) -> int:
    """Epochs of a stage: fewer on large data, which is learned in fewer and would take hours, at least 1.

    Parameters
    ----------
    epochs : int
        Its epochs on small data.
    targets : int
        Targets of an epoch.
    """
    return max(round(epochs * min(1.0, (_LARGE / targets) ** _LARGE_POWER)), 1)


def teacher_epochs(targets: int) -> int:
    """Epochs of one of several teachers: the more data, the later a model has learned it by heart; at least 2.

    Parameters
    ----------
    targets : int
        Targets of an epoch.
    """
    least, most = _EPOCHS
    return max(stage_epochs(min(max(targets // _TARGETS_OF_AN_EPOCH, least), most), targets), 2)


def trial_training(epochs: int, targets: int) -> tuple[int, float]:
    """Epochs after which the poor ones of several teachers are dropped, and the share of the windows that these train.

    Parameters
    ----------
    epochs : int
        Epochs of those that are trained to their end.
    targets : int
        Targets of an epoch. An eighth of the epochs may be a part of one only where that part has many targets, and
        where there are epochs after it.
    """
    if epochs == 1:
        return 1, 1.0
    wanted = epochs * _TRIAL_SHARE
    return max(1, round(wanted)), min(1.0, max(wanted, _LARGE / targets))


def mean_members(targets: int, epochs: int) -> int:
    """The most members of a mean of teachers: small data is trained quickly, large data within hours.

    Parameters
    ----------
    targets : int
        Targets of an epoch.
    epochs : int
        Epochs of a member.
    """
    least, most = _MEMBERS
    if targets > _LARGE:
        return least
    return max(min(targets // _TARGETS_OF_A_MEMBER, _MOST_TARGETS_OF_MEMBERS // (epochs * targets), most), least)


def has_second_seeds(targets: int) -> bool:
    """Whether a place that no candidate earns in a mean of teachers goes to another seed of one that does.

    Parameters
    ----------
    targets : int
        Targets of an epoch. Small data is to be trained in minutes, and large data takes long enough.
    """
    return (_MEMBERS[0] + 1) * _TARGETS_OF_A_MEMBER <= targets <= _LARGE


def candidate_training(epochs: int, targets: int) -> tuple[int, float]:
    """Epochs after which architectures are compared, and the share of the windows that these train.

    How well a training tells architectures apart depends on the number of targets that they were trained on: where an
    epoch has many, the epochs are fewer, down to one of a part of the windows.

    Parameters
    ----------
    epochs : int
        Epochs on a small dataset.
    targets : int
        Targets of an epoch; above 100,000 the epochs are fewer in proportion.
    """
    wanted = epochs * min(1.0, _CANDIDATE_TARGETS / targets)
    return max(1, round(wanted)), min(1.0, wanted)
